"""Twins: growth rates with a closed form, bands that hold the run, and labels that claim no more than they may."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor, nn

from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.readings import likeliest
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training
from hnf_offline.rerun.twins import butterfly_twins, growth_rate, statistical_twins
from hnf_offline.rerun.zoom import Zoomed
from hnf_offline.retraining import NOT_REPRODUCIBLE


@given(rate=some.floats(-0.5, 0.5), scale=some.floats(1e-9, 1e3), steps=some.integers(4, 60))
def test_the_rate_of_pure_growth_is_its_exponent(rate: float, scale: float, steps: int) -> None:
    distances = [scale * math.exp(rate * step) for step in range(steps)]
    assert growth_rate(distances) == pytest.approx(rate, abs=1e-6)


def test_saturation_does_not_flatten_the_rate() -> None:
    distances = [min(1.0, 1e-6 * math.exp(0.3 * step)) for step in range(200)]
    assert growth_rate(distances) == pytest.approx(0.3, rel=1e-3)


def test_noise_about_growth_averages_out() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    distances = [1e-6 * math.exp(0.1 * step + noise[step]) for step in range(100)]
    assert growth_rate(distances) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("distances", [[], [1.0, 2.0, 4.0], [0.0] * 10, [math.nan] * 10, [math.inf] * 10])
def test_of_too_little_no_rate_is_claimed(distances: list[float]) -> None:
    assert growth_rate(distances) is None


class Bowl(nn.Module):
    """loss = sum of curvature * w^2 / 2, whatever the rows."""

    def __init__(self, curvature: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, 50))
        self.curvature = curvature

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.curvature * self.weight.square().sum() / 2


@pytest.mark.parametrize("product", [0.5, 1.5, 2.5, 3.0])
def test_the_lyapunov_rate_of_a_bowl_is_that_of_gradient_descent(
    train: Callable[..., Training], product: float
) -> None:
    rows = torch.zeros(1, 2, dtype=torch.long)
    begin = SimpleNamespace(
        training=lambda recipe, policies, seed=0: train(Bowl(2.0), rows, rate=product / 2.0),
        checkpoint=SimpleNamespace(step=0),
    )
    twins = butterfly_twins(begin, Recipe("sgd"), 12, 3)  # type: ignore[arg-type]
    assert twins.lyapunov_rate == pytest.approx(math.log(abs(1 - product)), abs=0.03)
    assert twins.lyapunov_low is not None and twins.lyapunov_high is not None
    assert twins.lyapunov_low <= twins.lyapunov_rate <= twins.lyapunov_high
    assert ("doubles every" if product > 2 else "forgets small disturbances") in twins.text


def test_a_run_past_the_edge_forgets_nothing(start: Start) -> None:
    recipe = likeliest(start)
    calm = butterfly_twins(start, recipe, 30, 2, lambda: make_policies("lr-scale=0.1"))
    wild = butterfly_twins(start, recipe, 30, 2, lambda: make_policies("lr-constant=0.3"))
    assert calm.lyapunov_rate is not None and wild.lyapunov_rate is not None
    assert abs(calm.lyapunov_rate) < 0.1 < wild.lyapunov_rate


def test_the_band_holds_the_run_and_is_narrow(start: Start) -> None:
    twins = butterfly_twins(start, likeliest(start), 20, 3)
    rows = start.run.log.rows.filter((start.run.log.rows["step"] > 10) & (start.run.log.rows["step"] <= 20))
    assert twins.steps == tuple(range(11, 21))
    for logged, low, high in zip(rows["loss"], twins.low, twins.high, strict=True):
        assert low - 1e-6 <= logged <= high + 1e-6
        assert high - low < 1e-3
    assert twins.high[-1] > twins.low[-1]
    assert (twins.kind, twins.count, twins.perturbation) == ("butterfly", 3, 1e-6)


def test_twins_are_the_same_every_time(start: Start) -> None:
    recipe = likeliest(start)
    assert butterfly_twins(start, recipe, 16, 2) == butterfly_twins(start, recipe, 16, 2)
    assert statistical_twins(start, recipe, 16, 2) == statistical_twins(start, recipe, 16, 2)


def test_a_diverging_twin_leaves_the_band_open(start: Start) -> None:
    twins = butterfly_twins(start, likeliest(start), 20, 2, lambda: make_policies("lr-constant=1e30"))
    assert math.isfinite(twins.high[0])
    assert not math.isfinite(twins.high[-1])


def test_statistical_twins_say_what_they_are(start: Start) -> None:
    twins = statistical_twins(start, likeliest(start), 20, 3)
    assert (twins.kind, twins.perturbation, twins.lyapunov_rate) == ("statistical", None, None)
    assert "not this run" in twins.text
    assert all(low < high for low, high in zip(twins.low, twins.high, strict=True))
    assert max(twins.high) < 4 and min(twins.low) > 1  # about log 17 at first


@pytest.mark.parametrize("twins", [0, 2])
def test_a_run_that_cannot_be_replayed_gets_a_statistical_band_and_is_not_exact(
    record_dropout: Callable[..., Path], tried: Callable[..., Zoomed], twins: int
) -> None:
    done = tried(record_dropout(), 10, 16, twins=twins).retraining
    assert done.twins is not None
    assert (done.twins.kind, done.twins.count) == ("statistical", twins or 3)
    assert done.reproduction.word == NOT_REPRODUCIBLE
    assert done.twins.low[0] < done.twins.high[0]  # other rows and other dropout, not the same run thrice
