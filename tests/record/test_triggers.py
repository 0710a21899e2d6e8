"""Triggers fire on what is planted, stay silent on noise, and never look ahead."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.record.triggers import LossSpike, NotFinite, StabilityAbove, Trigger


def fired(trigger: Trigger, losses: Iterable[float]) -> list[int]:
    return [step for step, loss in enumerate(losses) if trigger.see({"step": step, "loss": loss}) is not None]


def noise(kind: str, seed: int, size: int = 2000) -> np.ndarray:
    draw = np.random.default_rng(seed)
    if kind == "gaussian":
        return 2.5 + 0.05 * draw.standard_normal(size)
    if kind == "log-normal":
        return 2.5 * np.exp(0.1 * draw.standard_normal(size))
    if kind == "falling":
        return 1.5 + 3 * np.exp(-np.arange(size) / 300) + 0.05 * draw.standard_normal(size)
    level = np.zeros(size)
    for step in range(1, size):
        level[step] = 0.8 * level[step - 1] + 0.03 * draw.standard_normal()
    return 2.5 + level


@pytest.mark.parametrize("kind", ["gaussian", "log-normal", "falling", "autocorrelated"])
def test_two_thousand_steps_of_noise_freeze_nothing(kind: str) -> None:
    # Three seeds a kind: 24,000 steps in all, none of which fires.
    for seed in range(3):
        assert fired(LossSpike(), noise(kind, seed)) == []


def test_heavy_tails_fire_rarely() -> None:
    # Student's t with 3 degrees of freedom: such a loss has real outliers.
    losses = 2.5 + 0.05 * np.random.default_rng(0).standard_t(3, size=20_000)
    assert len(fired(LossSpike(), losses)) / 20_000 < 0.004


@pytest.mark.parametrize("height", [0.5, 1.0, 5.0])
def test_a_planted_spike_fires_at_its_first_step(height: float) -> None:
    losses = noise("gaussian", 1)
    losses[1200:1206] += height
    assert fired(LossSpike(), losses)[0] == 1200


def test_a_loss_that_is_negative_has_spikes_too() -> None:
    losses = -1.0 + 0.01 * np.random.default_rng(0).standard_normal(300)
    losses[200] = 2.0
    assert fired(LossSpike(), losses) == [200]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0.1, 20.0), min_size=30, max_size=90),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=5),
    st.sampled_from([2.0**-10, 8.0, 1024.0]),
)
def test_it_knows_no_future_and_no_unit(losses: list[float], after: list[float], unit: float) -> None:
    alone = fired(LossSpike(), losses)
    assert [step for step in fired(LossSpike(), losses + after) if step < len(losses)] == alone
    # Powers of two scale floats exactly; on the log scale they only shift.
    scaled = fired(LossSpike(rise=0.1001), [unit * loss for loss in losses])
    assert scaled == fired(LossSpike(rise=0.1001), losses)


def test_not_finite_speaks_at_the_onset_alone() -> None:
    trigger = NotFinite()
    losses = [1.0, math.nan, math.nan, 1.0, math.inf, 2.0]
    assert fired(trigger, losses) == [1, 4]
    assert trigger.urgent
    assert trigger.see({"step": 7, "loss": 1.0, "grad_norm": -math.inf}) == "grad_norm is -inf"


def test_stability_speaks_when_it_rises_through_one() -> None:
    trigger = StabilityAbove()
    ratios = [1.2, 0.95, 0.8, None, 0.97, 1.01, 1.3, 0.95, 1.1, 0.7, 1.05]
    rows = [{"step": 1.0} | ({} if ratio is None else {"stability_ratio": ratio}) for ratio in ratios]
    # Not at the start (never below), not while it hovers at the edge.
    assert [place for place, row in enumerate(rows) if trigger.see(row)] == [5, 10]
