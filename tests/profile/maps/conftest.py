"""Tiny models of every kind that maps are measured on, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.maps import map_rows
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.table import Row

VOCABULARY, LENGTH, WIDTH = 13, 4, 8
_HF = {
    "llama": {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 12,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2,
        "max_position_embeddings": 16, "tie_word_embeddings": True, "initializer_range": 0.4,
        "architectures": ["LlamaForCausalLM"],
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 1, "n_head": 2,
        "n_positions": 16, "initializer_range": 0.4, "bos_token_id": 0, "eos_token_id": 0,
        "architectures": ["GPT2LMHeadModel"],
    },
}  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """A model, what is measured of it, and what was."""

    module: nn.Module
    subject: Subject
    rows: tuple[Row, ...]

    def of(self, quantity: str) -> dict[str, Row]:
        return {row.layer: row for row in self.rows if row.quantity == quantity}


class Encoder(nn.Module):
    """torch's own encoder, with the sequences first or second."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        stream = self.embedding(input_ids)
        if self.batch_first:
            return self.head(self.encoder(stream))
        return self.head(self.encoder(stream.transpose(0, 1)).transpose(0, 1))


def build(name: str) -> nn.Module:
    """Make one of the tiny models, drawn from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if name in _HF:
            pytest.importorskip("transformers")
            from hnf_offline.run.model.huggingface import build_huggingface

            module: nn.Module = build_huggingface(_HF[name])
        elif name.startswith("encoder"):
            module = Encoder(batch_first=name == "encoder")
        else:
            shape = GPTConfig(VOCABULARY, 16, 1, 2, WIDTH, mlp_width=12, norm=name, initial_std=0.4)  # type: ignore[arg-type]
            module = GPT(shape).initialise()
    return module.double().eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], nn.Module]:
    """Maker of tiny models: make_model("pre" | "post" | "none" | "llama" | "gpt2" | "encoder" | "encoder-second")."""
    return build


@pytest.fixture(scope="session")
def make_subject() -> Callable[..., Subject]:
    """Maker of what is measured: make_subject(module, rows=3, length=4)."""

    def make(module: nn.Module, *, rows: int = 3, length: int = LENGTH, **changes: Any) -> Subject:
        tokens = torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(2))
        batch = ReplayBatch.of(tokens, None, "replay")
        cpu = torch.device("cpu")
        half = -(-rows // 2)
        halves, together = batch.cut(half, cpu), batch.cut(rows, cpu)
        return Subject(7, module, layers_of(module), None, halves, together, "replay", **changes)

    return make


@pytest.fixture(scope="session")
def mapped(
    make_model: Callable[[str], nn.Module], make_subject: Callable[..., Subject]
) -> Callable[[str], Mapped]:
    """A tiny model, what is measured of it, and its rows, each computed once: mapped("llama")."""

    @cache
    def of(name: str) -> Mapped:
        module = make_model(name)
        subject = make_subject(module)
        return Mapped(module, subject, tuple(map_rows(subject, ProfileSettings(dtype="float64"))))

    return of


@pytest.fixture(autouse=True)
def _plain_attention() -> Iterator[None]:
    """Every module of torch's encoder is called by itself, and all attention has second derivatives."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(fused)
