"""The measured model: a GPT with separate projections and an attention that every tool can differentiate twice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, LENGTH = 128, 64


@dataclass(frozen=True, slots=True)
class Size:
    """One of the measured models.

    Attributes:
        width: of the residual stream.
        blocks: number of blocks.
        heads: attention heads.
        steps: training steps; a checkpoint is kept every 10.
        rows: rows of the batch whose curvature is measured.
    """

    width: int
    blocks: int
    heads: int
    steps: int
    rows: int = 4

    @property
    def name(self) -> str:
        """How tables and folders call it."""
        return f"d={self.width} L={self.blocks}"


SMALL = Size(width=64, blocks=6, heads=4, steps=400)
LARGE = Size(width=128, blocks=12, heads=4, steps=150, rows=2)


class Attention(nn.Module):
    """Causal self-attention whose softmax is spelled out: forward-mode and second derivatives all exist."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q_proj = nn.Linear(size.width, size.width)
        self.k_proj = nn.Linear(size.width, size.width)
        self.v_proj = nn.Linear(size.width, size.width)
        self.o_proj = nn.Linear(size.width, size.width)
        self.register_buffer("future", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, stream: Tensor) -> Tensor:
        """Attend.

        Returns:
            [rows, length, width].
        """
        rows, length, width = stream.shape
        query, key, value = (
            projection(stream).view(rows, length, self.heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(width // self.heads)
        assert isinstance(self.future, Tensor)
        scores = scores.masked_fill(self.future[:length, :length], float("-inf"))
        mixed = scores.softmax(dim=-1) @ value
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, width))  # type: ignore[no-any-return]


class Feedforward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.up_proj = nn.Linear(size.width, 4 * size.width)
        self.down_proj = nn.Linear(4 * size.width, size.width)

    def forward(self, stream: Tensor) -> Tensor:
        """Transform every position.

        Returns:
            [rows, length, width].
        """
        return self.down_proj(functional.gelu(self.up_proj(stream)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feedforward, each behind a LayerNorm and beside the residual stream: eight layers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.width)
        self.attention = Attention(size)
        self.ln_2 = nn.LayerNorm(size.width)
        self.mlp = Feedforward(size)

    def forward(self, stream: Tensor) -> Tensor:
        """Add both branches.

        Returns:
            [rows, length, width].
        """
        stream = stream + self.attention(self.ln_1(stream))
        return stream + self.mlp(self.ln_2(stream))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Pre-LayerNorm GPT without weight tying; called with tokens it gives logits, [rows, length, vocabulary]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, size.width)
        self.position_embedding = nn.Embedding(LENGTH, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.blocks))
        self.ln_f = nn.LayerNorm(size.width)
        self.lm_head = nn.Linear(size.width, VOCABULARY, bias=False)

    def initialise(self, generator: torch.Generator) -> Decoder:
        """Draw GPT-2's initial weights.

        Returns:
            The model itself.
        """
        residual = 1 / math.sqrt(2 * len(self.blocks))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim < 2:
                    parameter.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
                    continue
                closing = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, 0.02 * (residual if closing else 1.0), generator=generator)
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        """Predict the next token at every position.

        Returns:
            Logits, [rows, length, vocabulary].
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        stream = self.token_embedding(input_ids) + self.position_embedding(positions)
        for block in self.blocks:
            stream = block(stream)
        logits: Tensor = self.lm_head(self.ln_f(stream))
        return logits


class NextToken(nn.Module):
    """Mean cross-entropy of the next token, as a module with a `reduction`, which curvlinops asks for."""

    reduction = "mean"

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Compare logits with the tokens one position on.

        Returns:
            A scalar.
        """
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
