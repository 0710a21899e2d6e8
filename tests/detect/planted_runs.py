"""Small networks that are really trained, sick or nearly so, recorded as runs and measured from their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.detect.pathologies import pathologies
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.findings import Pathology
from hnf_offline.profile import ProfileSettings
from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.maps import precision_rows
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.subject import Subject
from hnf_offline.record import Recorder
from hnf_offline.run import load_rows, load_weights, open_run
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.table import Row, table

VOCABULARY, LENGTH, WIDTH = 11, 8, 16
#: What is done to the network after each step: (step, network).
Harm = Callable[[int, nn.Module], None]


class Block(nn.Module):
    """A linear layer and its activation function."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(width, width), activation

    def forward(self, stream: Tensor) -> Tensor:
        """Give the activations."""
        return self.activation(self.linear(stream))  # type: ignore[no-any-return]


class Network(nn.Module):
    """Predicts each next token from the token before by a stack of layers, a norm after the embedding if wanted."""

    def __init__(
        self, blocks: int, activation: type[nn.Module], *, norm: bool = False, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, activation()) for _ in range(blocks))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give logits."""
        stream = self.norm(self.embed(input_ids))
        for block in self.blocks:
            stream = block(stream)
        return self.head(stream)  # type: ignore[no-any-return]


class Mixing(nn.Module):
    """Attention of every token to all, beside a skip connection that can be taken away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, stream: Tensor) -> Tensor:
        """Give the stream."""
        heads = (part(stream).unsqueeze(1) for part in (self.query, self.key, self.value))
        return self.skip * stream + functional.scaled_dot_product_attention(*heads).squeeze(1)


class Mixer(nn.Module):
    """Attention alone, as Dong, Cordonnier & Loukas 2021 (arXiv 2103.03404) have it; sees what it predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Mixing(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give logits."""
        stream = self.embed(input_ids)
        for block in self.blocks:
            stream = block(stream)
        return self.head(stream)  # type: ignore[no-any-return]


def attention_network() -> nn.Module:
    """Three blocks of attention alone."""
    return Mixer()


def tanh_network() -> nn.Module:
    """Two blocks of tanh."""
    return Network(2, nn.Tanh)


def relu_network() -> nn.Module:
    """Two blocks of ReLU."""
    return Network(2, nn.ReLU, width=32)


def normed_network() -> nn.Module:
    """Two blocks of GELU behind a norm."""
    return Network(2, nn.GELU, norm=True)


def deep_network() -> nn.Module:
    """Twenty-four blocks of tanh."""
    return Network(24, nn.Tanh, width=32)


GPT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY, "block_size": LENGTH, "n_layer": 2, "n_head": 4, "n_embd": WIDTH, "mlp_width": 32,
    "norm": "pre", "initial_std": 0.1,
}  # fmt: skip


def decoder() -> nn.Module:
    """The built-in decoder, two blocks of four heads."""
    return GPT(GPTConfig.from_mapping(GPT_CONFIG))


def nothing(step: int, network: nn.Module) -> None:
    """Leave a network as it is."""


def weak_skips(size: float) -> Harm:
    """Skip connections of the network of attention alone, from step 24 on."""

    def harm(step: int, network: nn.Module) -> None:
        if step >= 24:
            for block in network.get_submodule("blocks").children():
                block.get_parameter("skip").fill_(size)

    return harm


def rows_of(seed: int, rows: int, *, tokens: int = VOCABULARY) -> Tensor:
    """Sequences in which the next token mostly is the one before plus three.

    Args:
        seed: of the draw.
        rows: how many.
        tokens: only so many of the vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, tokens, (rows, 1), generator=generator)
    clean = (start + 3 * torch.arange(LENGTH)) % tokens
    other = torch.randint(0, tokens, clean.shape, generator=generator)
    return torch.where(torch.rand(clean.shape, generator=generator) < 0.15, other, clean)


def train(
    folder: Path,
    model: str,
    *,
    seed: int = 0,
    steps: int = 48,
    every: int = 8,
    rate: float = 3e-3,
    harm: Harm = nothing,
    begin: Callable[[nn.Module], None] | None = None,
    dtype: torch.dtype = torch.float32,
    batch: Callable[[int], Tensor] | None = None,
    replay: Tensor | None = None,
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] | None = None,
    extra: dict[str, float] | None = None,
) -> Path:
    """Train a network and record it as its user would.

    Args:
        folder: where the run goes.
        model: name of a function of this module that builds the network.
        seed: of weights and data.
        steps: updates.
        every: steps between checkpoints; the first is that of step 1.
        rate: learning rate.
        harm: done after every step, before it is recorded.
        begin: done to the new network.
        dtype: in which it is trained.
        batch: rows of a step; 16 random ones if None.
        replay: rows to be replayed; 32 random ones if None.
        optimizer: makes it; Adam if None.
        extra: further columns of the log.
    """
    torch.manual_seed(seed)
    network = globals()[model]()
    if isinstance(network, GPT):
        network.initialise(torch.Generator().manual_seed(seed))
    if begin is not None:
        with torch.no_grad():
            begin(network)
    network.to(dtype)
    made = (optimizer or (lambda of, at: torch.optim.Adam(of.parameters(), lr=at)))(network, rate)
    with Recorder(
        folder, every=lambda step: step == 1 or step % every == 0, model={"model_type": "own"}
    ) as recorder:
        recorder.save_batches(rows_of(1000 + seed, 32) if replay is None else replay)
        for step in range(1, steps + 1):
            rows = rows_of(7919 * seed + step, 16) if batch is None else batch(step)
            loss = functional.cross_entropy(
                network(rows)[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten()
            )
            made.zero_grad()
            loss.backward()
            made.step()
            with torch.no_grad():
                harm(step, network)
            recorder.record(step, network, made, loss=loss, grad_norm=1.0, **(extra or {}))
    return folder


def found(run: Path, model: str, *, tier: str = "forward", **settings: Any) -> tuple[Pathology, ...]:
    """Measure a recorded run and find its pathologies, as a report does."""
    opened = open_run(run)
    assert opened.log is not None
    asked = ProfileSettings(tier=tier, device="cpu", **settings)
    profile = profile_run(
        opened, asked, run.parent / f"{run.name}-out", model_factory=f"{__name__}:{model}"
    ).table
    spikes = find_spikes(opened.log.rows)
    return pathologies(profile, opened.log.rows, spikes)


def found_when_cast(run: Path, model: str) -> tuple[Pathology, ...]:
    """Find what casting a recorded run to reduced precision shows: of tier full that part alone."""
    opened, module = open_run(run), globals()[model]()
    rows: list[Row] = []
    tokens, _ = load_rows(opened.batches, range(32))
    for checkpoint in opened.checkpoints:
        load_weights_into(module, load_weights(checkpoint))
        halves = tuple(ReplayBatch.of(tokens, None, "rows").cut(16, torch.device("cpu")))
        subject = Subject(checkpoint.step, module.eval(), layers_of(module), None, halves, halves, "rows")
        rows += precision_rows(subject)
    return pathologies(table(rows), pl.DataFrame({"step": [1], "loss": [1.0]}), ())
