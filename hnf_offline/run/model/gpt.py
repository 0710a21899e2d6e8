"""The built-in decoder: nanoGPT's parameter names, with norms before, after, or nowhere.

A checkpoint of nanoGPT (norm "pre", tied, GELU, MLP width 4 d) loads into it name by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.errors import InputError


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """Shape of the built-in decoder.

    Attributes:
        vocab_size: tokens.
        block_size: longest sequence.
        n_layer: blocks.
        n_head: attention heads.
        n_embd: width of the residual stream.
        mlp_width: hidden width of the MLP, None for 4 n_embd.
        norm: "pre", "post" or "none".
        bias: whether linear layers and norms have biases.
        tied: whether the head shares the embedding's weight.
        initial_std: standard deviation of the initial weights.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    mlp_width: int | None = None
    norm: Literal["none", "pre", "post"] = "pre"
    bias: bool = True
    tied: bool = True
    initial_std: float = 0.02

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> GPTConfig:
        """Read a configuration, ignoring keys of the trainer.

        Returns:
            The configuration.

        Raises:
            InputError: if a size is missing or not a number, or the norm is unknown.
        """
        known = {
            field.name: mapping[field.name] for field in fields(cls) if mapping.get(field.name) is not None
        }
        missing = [
            name for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd") if name not in known
        ]
        if missing:
            raise InputError(
                f"the model configuration lacks {', '.join(missing)}", remedy="add them to config.json"
            )
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "mlp_width")
        for name in sizes:
            if name in known and (not isinstance(known[name], int) or not 0 < known[name] < 1 << 31):
                raise InputError(f"{name} = {known[name]!r} in the model configuration is no size")
        if known.get("norm", "pre") not in {"none", "pre", "post"}:
            raise InputError(f"norm = {known['norm']!r} is unknown", remedy="use none, pre or post")
        if known["n_embd"] % known["n_head"]:
            raise InputError(f"n_embd = {known['n_embd']} is not a multiple of n_head = {known['n_head']}")
        return cls(**known)


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention with a fused query-key-value projection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, stream: Tensor) -> Tensor:
        """Attend.

        Returns:
            [batch, tokens, width].
        """
        batch, length, width = stream.shape
        heads = (batch, length, self.n_head, width // self.n_head)
        query, key, value = (
            part.view(heads).transpose(1, 2) for part in self.c_attn(stream).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = config.mlp_width or 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, hidden, bias=config.bias)
        self.c_proj = nn.Linear(hidden, config.n_embd, bias=config.bias)

    def forward(self, stream: Tensor) -> Tensor:
        """Transform each token.

        Returns:
            [batch, tokens, width].
        """
        return self.c_proj(functional.gelu(self.c_fc(stream)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP with residual connections; where the norms stand is the configuration's choice."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm = config.norm
        if config.norm != "none":
            self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        if config.norm != "none":
            self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, stream: Tensor) -> Tensor:
        """Add both branches to the residual stream.

        Returns:
            [batch, tokens, width].
        """
        if self.norm == "pre":
            stream = stream + self.attn(self.ln_1(stream))
            return stream + self.mlp(self.ln_2(stream))  # type: ignore[no-any-return]
        if self.norm == "post":
            stream = self.ln_1(stream + self.attn(stream))
            return self.ln_2(stream + self.mlp(stream))  # type: ignore[no-any-return]
        stream = stream + self.attn(stream)
        return stream + self.mlp(stream)  # type: ignore[no-any-return]


class GPT(nn.Module):
    """The decoder; called with tokens it gives logits, [batch, tokens, vocabulary]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.transformer = nn.ModuleDict({
            "wte": embedding,
            "wpe": nn.Embedding(config.block_size, config.n_embd),
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
        })
        if config.norm == "pre":
            self.transformer["ln_f"] = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = embedding.weight

    def initialise(self, generator: torch.Generator | None = None) -> GPT:
        """Draw N(0, initial_std) weights; output projections are scaled by 1 / sqrt(2 n_layer), as in GPT-2.

        Returns:
            The model itself.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim < 2:
                    parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                    continue
                scale = 1 / math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 1.0
                parameter.normal_(0.0, self.config.initial_std * scale, generator=generator)
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        """Predict the next token at every position.

        Returns:
            Logits, [batch, tokens, vocabulary].

        Raises:
            InputError: if the rows are longer than the model's longest sequence.
        """
        if input_ids.shape[1] > self.config.block_size:
            raise InputError(
                f"rows of {input_ids.shape[1]} tokens, but the model takes at most {self.config.block_size}",
                remedy="give the batches this run was trained on with --replay",
            )
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        stream = self.transformer["wte"](input_ids) + self.transformer["wpe"](positions)
        blocks = self.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            stream = block(stream)
        if "ln_f" in self.transformer:
            stream = self.transformer["ln_f"](stream)
        logits: Tensor = self.lm_head(stream)
        return logits
