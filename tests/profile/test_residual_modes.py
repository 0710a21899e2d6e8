"""Dynamic modes of blocks: planted maps within a module, error bars, and where they are measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import UsageError
from hnf_offline.options import AccuracyName, PrecisionName, TierName, profile_settings
from hnf_offline.profile import residual_modes
from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.measure import measure
from hnf_offline.profile.residual_modes import _drawn_moduli, _streams, mode_rows
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of


class Linear(nn.Module):
    """A block that is one linear map, changed in place where it is asked for."""

    def __init__(self, operator: Tensor, *, in_place: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(operator)
        self.inner = nn.Identity()
        self.in_place = in_place

    def forward(self, hidden: Tensor) -> Tensor:
        result = self.inner(hidden @ self.weight.T)
        return hidden.copy_(result) if self.in_place else result


class Stack(nn.Module):
    """An embedding, linear blocks and a head."""

    def __init__(self, operators: list[Tensor], *, in_place: bool = False) -> None:
        super().__init__()
        width = len(operators[0])
        self.embedding = nn.Embedding(40, width)
        self.blocks = nn.ModuleList(Linear(one, in_place=in_place) for one in operators)
        self.head = nn.Linear(width, 40)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens).clone()
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def rotated(values: list[float], seed: int) -> Tensor:
    drawn = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(drawn)[0]
    return basis @ torch.diag(torch.tensor(values)) @ basis.mT


def gpt(blocks: int) -> GPT:
    config = GPTConfig(40, 12, blocks, 2, 8, mlp_width=12, initial_std=0.3)
    return GPT(config).initialise(torch.Generator().manual_seed(1)).eval()


def drawn_tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(2))


def subject_of(module: nn.Module, tokens: Tensor) -> Subject:
    cut = ReplayBatch.of(tokens, None, "replay").cut(5, torch.device("cpu"))
    return Subject(7, module, layers_of(module), None, cut, cut, "replay")


def of(rows, name):
    return {row.layer: row for row in rows if row.quantity == name}


@pytest.mark.parametrize("in_place", [False, True])
def test_planted_spectra_come_back_block_by_block(in_place: bool) -> None:
    first, second = [1.5, 1.0, 0.95, 0.5], [1.02, 1.01, 1.0, 0.99]
    stack = Stack([rotated(first, 0), rotated(second, 1)], in_place=in_place).eval()
    rows = mode_rows(subject_of(stack, drawn_tokens(rows=16, length=12)), seed=0)
    near = of(rows, "koopman.near_unit_mass")
    assert {path: row.value for path, row in near.items()} == {"blocks.0": 0.5, "blocks.1": 1.0, "": 0.75}
    radius = of(rows, "koopman.spectral_radius")
    assert radius["blocks.0"].value == pytest.approx(1.5, rel=1e-4)
    assert radius[""].value == radius["blocks.0"].value, "the worst block stands for the model"
    assert {row.value for row in of(rows, "koopman.modes").values()} == {4}
    assert "blocks.0" not in of(rows, "koopman.kreiss"), "beyond 1 it is infinite, which is no news"
    assert near["blocks.0"].kind == "block" and near[""].kind == "model"
    assert near["blocks.0"].low is not None and near["blocks.0"].low <= 0.5 <= near["blocks.0"].high


def test_an_error_bar_is_that_of_whole_sequences_drawn_again() -> None:
    generator = np.random.default_rng(0)
    sequences = np.repeat(np.arange(6), 30)
    before = generator.normal(size=(180, 3))
    after = before @ generator.normal(size=(3, 3)) + generator.normal(size=(180, 3))
    found = _drawn_moduli(*(torch.tensor(one) for one in (before, after, sequences)), 0)
    counts = torch.randint(6, (residual_modes.DRAWS, 6), generator=torch.Generator().manual_seed(0))
    for drawn, moduli in zip(counts.tolist()[:5], found, strict=False):
        rows = np.concatenate([np.flatnonzero(sequences == one) for one in drawn])
        x, y = before[rows] - before[rows].mean(0), after[rows] - after[rows].mean(0)
        expected = abs(np.linalg.eigvals(np.linalg.lstsq(x, y, rcond=None)[0]))
        np.testing.assert_allclose(sorted(moduli.tolist()), sorted(expected), rtol=1e-8)
    assert _drawn_moduli(torch.tensor(before), torch.tensor(after), torch.tensor(sequences // 2), 0) is None


def test_a_bar_holds_what_draws_gave_and_the_value_and_that_of_the_model_their_mean(monkeypatch) -> None:
    given = torch.tensor([[1.0] * k + [2.0] * (4 - k) for k in range(5)]).double()  # near-unit masses 0 to 1
    monkeypatch.setattr(residual_modes, "_drawn_moduli", lambda *_: given)
    stack = Stack([rotated([1.0, 1.0, 1.0, 1.0], 0), rotated([1.5, 1.4, 1.3, 1.2], 1)]).eval()
    near = of(
        mode_rows(subject_of(stack, drawn_tokens(rows=16, length=12)), seed=0), "koopman.near_unit_mass"
    )
    low, high = given.new_tensor([0, 0.25, 0.5, 0.75, 1]).quantile(given.new_tensor([0.025, 0.975])).tolist()
    assert (near["blocks.0"].low, near["blocks.0"].high) == (pytest.approx(low), 1.0)
    assert (near["blocks.1"].low, near["blocks.1"].high) == (0.0, pytest.approx(high))
    assert (near[""].low, near[""].high) == (pytest.approx(low), pytest.approx(high))


def test_tokens_of_all_sequences_and_places_are_taken(monkeypatch) -> None:
    monkeypatch.setattr(residual_modes, "TOKENS", 24)
    tokens = torch.arange(96).reshape(12, 8) % 40
    stack = Stack([torch.eye(4)]).eval()
    streams = _streams(stack, subject_of(stack, tokens).batches)["blocks.0"]
    assert len(streams.before) <= 24 and set(streams.sequences.tolist()) == set(range(12))
    rows = {tuple(row) for row in stack.embedding.weight.tolist()}
    assert all(tuple(row) in rows for row in streams.before.tolist())
    places = [
        next(place for place in range(8) if torch.equal(stack.embedding(tokens[sequence, place]), row))
        for sequence, row in zip(streams.sequences.tolist(), streams.before, strict=True)
    ]
    assert set(places) == set(range(8)), "a stride that divides the length would take the same places of each"


def test_a_model_that_hands_its_blocks_all_rows_in_one_piece_has_its_sequences_too() -> None:
    class Flat(Stack):
        def forward(self, tokens: Tensor) -> Tensor:
            hidden = self.embedding(tokens).flatten(0, 1)
            for block in self.blocks:
                hidden = block(hidden)
            return self.head(hidden).unflatten(0, tokens.shape)

    tokens = drawn_tokens(rows=12, length=8)
    flat, plain = Flat([torch.eye(4)]).eval(), Stack([torch.eye(4)]).eval()
    seen = [_streams(one, subject_of(one, tokens).batches)["blocks.0"].sequences for one in (flat, plain)]
    assert torch.equal(*seen) and seen[0].tolist() == [row for row in range(12) for _ in range(8)]


def test_a_wide_stream_is_seen_in_its_leading_directions(monkeypatch) -> None:
    monkeypatch.setattr(residual_modes, "MODES", 3)
    stack = Stack([torch.eye(8)]).eval()
    rows = mode_rows(subject_of(stack, drawn_tokens(rows=6, length=10)), seed=0)
    assert of(rows, "koopman.modes")["blocks.0"].value == 3, "60 tokens are too few for all 8"
    few = mode_rows(subject_of(stack, drawn_tokens(rows=1, length=10)), seed=0)
    assert few == []


def test_streams_that_are_not_finite_have_no_modes() -> None:
    stack = Stack([torch.eye(4), torch.full((4, 4), float("nan"))]).eval()
    rows = mode_rows(subject_of(stack, drawn_tokens(rows=16, length=12)), seed=0)
    assert set(of(rows, "koopman.near_unit_mass")) == {"blocks.0", ""}


def test_every_block_of_a_decoder_is_measured_where_it_is_asked_for() -> None:
    subject = subject_of(gpt(2), drawn_tokens(rows=16, length=12))
    asked = measure(subject, ProfileSettings(tier="forward", device="cpu", koopman=True))
    near = of(asked, "koopman.near_unit_mass")
    assert len(near) == 3 and all(0 <= row.value <= 1 for row in near.values())
    shares = [of(asked, f"koopman.{name}_mass") for name in ("near_unit", "growing", "damped", "middle")]
    for path in near:
        assert sum(share[path].value for share in shares) == pytest.approx(1)
    assert all(math.isfinite(row.value) for row in asked if row.quantity.startswith("koopman."))
    plain = measure(subject, ProfileSettings(tier="forward", device="cpu"))
    assert not of(plain, "koopman.near_unit_mass")
    assert [row for row in asked if not row.quantity.startswith("koopman.")] == plain


def test_a_tier_that_replays_nothing_refuses() -> None:
    with pytest.raises(UsageError, match="--koopman is not measured by --tier weights"):
        profile_settings(
            TierName.weights, None, 1, None, "cpu", PrecisionName.float32, None, None,
            accuracy=AccuracyName.screen, koopman=True,
        )  # fmt: skip
