"""The loss around some weights, on losses whose every value is known on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError
from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.effort import counted
from hnf_offline.profile.surroundings import (
    LARGEST,
    SMALLEST,
    Surroundings,
    has_buffers,
    other_end,
    smallest_crossing,
)
from hnf_offline.quantities.landscape import (
    BOX,
    CORNERS,
    PAIRS,
    RADIUS,
    RISE,
    STRETCHES,
    barrier_of,
    epsilon_sharpness,
    linear_barrier,
    local_sharpness,
    pac_bayes,
)

TOKENS = torch.zeros(2, 3, dtype=torch.int64)


class Quadratic(nn.Module):
    """Loss sum h_i (w_i - c_i)^2 / 2; takes tokens and ignores them."""

    def __init__(self, weight: Tensor, curvature: Tensor, middle: Tensor | float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.curvature, self.middle = curvature, middle

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        loss = (self.curvature * (self.weight - self.middle).square()).sum() / 2
        return {"loss": loss + 0.0 * input_ids.sum()}


class Bowl(nn.Module):
    """Loss w'Hw / 2 with a dense H."""

    def __init__(self, weight: Tensor, hessian: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.hessian = hessian

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"loss": self.weight @ self.hessian @ self.weight / 2 + 0.0 * input_ids.sum()}


class Valleys(nn.Module):
    """Loss (w^2 - 1)^2: minima at -1 and 1, a hill of 1 between."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float64))

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.weight.square() - 1).square().sum() + 0.0 * input_ids.sum()}


class Normed(nn.Module):
    """A batch norm in eval mode: its loss is its running mean squared."""

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.norm.running_mean.fill_(mean)  # type: ignore[union-attr]

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"loss": self.norm(input_ids[:, :1].float()).square().mean()}


def around(module: nn.Module) -> Surroundings:
    return Surroundings.of(module, ReplayBatch.of(TOKENS, None, "rows").cut(1, torch.device("cpu")))


def random(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_step_uphill_is_slope_and_curvature_along_the_gradient() -> None:
    weight, curvature = random(7), random(7, 1).abs()
    module = Quadratic(weight.clone(), curvature)
    here = around(module)
    gradient = curvature * weight
    ascended = here.uphill({"weight": gradient})
    assert ascended is not None
    unit = gradient / gradient.norm()
    exact = RADIUS * gradient.norm() + RADIUS**2 / 2 * (unit @ (curvature * unit))
    assert local_sharpness(here.centre, ascended) == pytest.approx(float(exact), rel=1e-9)
    assert torch.equal(module.weight, weight), "the module stays where it is"


def test_without_a_direction_there_is_no_way_uphill() -> None:
    here = around(Quadratic(torch.zeros(3), torch.ones(3)))
    assert here.uphill({"weight": torch.zeros(3)}) is None
    assert here.uphill({"weight": torch.tensor([1.0, math.nan, 0.0])}) is None


def test_epsilon_sharpness_of_a_separable_parabola_is_exact() -> None:
    weight, curvature, middle = random(9), random(9, 1).abs(), random(9, 2)
    here = around(Quadratic(weight.clone(), curvature, middle))
    highest = here.highest_corner({"weight": curvature * (weight - middle)})
    assert highest is not None
    reach = (weight - middle).abs() + BOX * (
        weight.abs() + 1
    )  # each coordinate as far from its minimum as it can be
    exact = float((curvature * reach.square()).sum() / 2)
    assert highest == pytest.approx(exact, rel=1e-12)
    share = 100 * (exact - here.centre) / (1 + here.centre)
    assert epsilon_sharpness(here.centre, highest) == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_of_a_dense_one_it_is_a_lower_bound_that_no_first_corner_beats(seed: int) -> None:
    size = 10
    factor = random(size * size, seed).view(size, size)
    hessian = factor @ factor.T
    # So near the minimum that curvature decides, and the gradient's own corner is not the best.
    weight = 1e-4 * random(size, seed + 100)
    box = BOX * (weight.abs() + 1)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * size)
    points = weight + signs * box
    most = float(((points @ hessian) * points).sum(1).max() / 2)
    first = weight + box * (hessian @ weight).sign()
    here = around(Bowl(weight.clone(), hessian))
    highest = here.highest_corner({"weight": hessian @ weight})
    assert highest is not None
    assert float(first @ hessian @ first / 2) - 1e-15 <= highest <= most * (1 + 1e-12)
    assert highest - here.centre >= 0.6 * (most - here.centre)


def test_corners_that_improve_are_gone_to() -> None:
    gained: list[float] = []
    for seed in range(20):
        factor = random(100, seed).view(10, 10)
        hessian, weight = factor @ factor.T, 1e-4 * random(10, seed + 100)
        rises: list[float] = []
        for corners in (1, CORNERS):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("hnf_offline.profile.surroundings.CORNERS", corners)
                here = around(Bowl(weight.clone(), hessian))
                found = here.highest_corner({"weight": hessian @ weight})
                assert found is not None
                rises.append(found - here.centre)
        gained.append(rises[1] / rises[0])
    assert min(gained) >= 1 - 1e-12, "of a convex loss no corner is lower than the one before"
    assert np.quantile(gained, 0.8) > 1.1


def test_without_a_gradient_there_is_no_corner_and_what_bursts_is_infinite() -> None:
    here = around(Quadratic(torch.zeros(3), torch.ones(3)))
    assert here.highest_corner({"weight": torch.zeros(3)}) is None
    assert here.highest_corner({"weight": torch.tensor([1.0, math.nan, 0.0])}) is None
    bursting = around(Quadratic(torch.full((1,), 1.8444e19), torch.ones(1)))
    assert math.isfinite(bursting.centre)
    assert bursting.highest_corner({"weight": torch.ones(1)}) == math.inf


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_largest_noise_on_a_parabola_is_that_of_its_trace(scale: float) -> None:
    weight, curvature = random(4000), scale * random(4000, 1).abs()
    found = around(Quadratic(weight, curvature)).largest_noise(seed=0)
    exact = math.sqrt(2 * RISE / float((weight.square() * curvature).sum()))
    if exact > LARGEST:
        assert not found.certified and pac_bayes(found) == LARGEST and found.high == math.inf
        return
    assert found.certified and pac_bayes(found) == pytest.approx(exact, rel=0.03)
    assert found.low < exact < found.high < 1.1 * found.low


def test_with_equal_weights_it_is_the_trace_and_slopes_do_not_enter() -> None:
    curvature = random(3000, 1).abs()
    flat = around(Quadratic(torch.ones(3000, dtype=torch.float64), curvature, 1.0)).largest_noise(seed=1)
    steep = around(Quadratic(torch.ones(3000, dtype=torch.float64), curvature, -4.0)).largest_noise(seed=1)
    trace = float(curvature.sum())
    assert flat.value == pytest.approx(math.sqrt(2 * RISE / trace), rel=0.05)
    assert steep.value == pytest.approx(flat.value, rel=1e-6), "each pair has w + n and w - n"


def test_the_band_is_honest_where_one_direction_decides() -> None:
    curvature = torch.tensor([50.0, *[1e-3] * 9], dtype=torch.float64)
    module = Quadratic(torch.ones(10, dtype=torch.float64), curvature, 1.0)
    exact = math.sqrt(2 * RISE / float(curvature.sum()))
    found = [around(module).largest_noise(seed) for seed in range(40)]
    held = sum(one.low <= exact <= one.high for one in found)
    assert held >= 30
    assert np.median([one.high / one.low for one in found]) > 1.5


def test_a_loss_that_bursts_is_met_from_below() -> None:
    def rises(size: float, pairs: int) -> np.ndarray:
        return np.full(pairs, 5.0 * size**2 if size < 0.2 else math.nan)

    found = smallest_crossing(rises)
    assert found.certified and found.value == pytest.approx(math.sqrt(RISE / 5.0))


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_other_powers_are_found_too(power: float) -> None:
    found = smallest_crossing(lambda size, pairs: np.full(pairs, (size / 0.5) ** power * RISE))
    assert found.certified and found.value == pytest.approx(0.5, rel=0.06)


def test_what_no_noise_reaches_is_a_bound() -> None:
    never = smallest_crossing(lambda size, pairs: np.full(pairs, -1e-3))
    assert not never.certified and never.value == LARGEST
    always = smallest_crossing(lambda size, pairs: np.full(pairs, math.inf))
    assert not always.certified and always.value == SMALLEST and always.low == 0
    jumps = smallest_crossing(lambda size, pairs: np.full(pairs, 1.0 if size > 0.1 else 0.0))
    assert not jumps.certified and jumps.low <= 0.1 <= jumps.high <= 1.1 * jumps.low


def test_between_two_valleys_the_barrier_is_the_hill() -> None:
    here = around(Valleys(1.0))
    losses = here.path({"weight": torch.tensor([-1.0], dtype=torch.float64)})
    assert losses.shape == (STRETCHES + 1,)
    assert barrier_of(losses) == (pytest.approx(1.0), 0.5)
    assert linear_barrier(losses) == pytest.approx(1.0)
    uneven = around(Valleys(0.0)).path({"weight": torch.tensor([-1.0], dtype=torch.float64)})
    place = np.linspace(0, 1, STRETCHES + 1)
    exact = ((1 - place) ** 2 - 1) ** 2 - place
    assert linear_barrier(uneven) == pytest.approx(max(0.0, exact.max()))


def test_within_a_parabola_there_is_none() -> None:
    module = Quadratic(random(5), random(5, 1).abs())
    assert linear_barrier(around(module).path({"weight": random(5, 2)})) == 0.0


def test_a_loss_that_is_not_finite_on_the_way_is_an_infinite_barrier() -> None:
    assert barrier_of(np.array([1.0, 2.0, math.nan, 0.5, 1.0])) == (math.inf, 0.5)
    assert barrier_of(np.array([1.0, math.inf, 0.5])) == (math.inf, 0.5)


def test_running_statistics_lie_on_the_path_and_are_told() -> None:
    module, other = Normed(3.0).eval(), Normed(-1.0).eval()
    here = around(module)
    start = other_end(module, other.state_dict())
    assert set(start) == {"norm.weight", "norm.bias", "norm.running_mean"} and has_buffers(module, start)
    assert float(module.norm.running_mean) == 3.0  # type: ignore[arg-type]
    losses = here.path(start)
    assert losses[0] == pytest.approx(1.0, rel=1e-4) and losses[-1] == pytest.approx(9.0, rel=1e-4)
    assert losses[2] == pytest.approx(0.0, abs=1e-6), "a quarter of the way from -1 to 3"
    same = other_end(module, module.state_dict())
    assert not has_buffers(module, same)


def test_weights_of_other_shapes_leave_the_module_as_it_was() -> None:
    module = Quadratic(torch.ones(3), torch.ones(3))
    with pytest.raises(InputError, match="shape"):
        other_end(module, {"weight": torch.zeros(4)})
    assert torch.equal(module.weight, torch.ones(3))


def test_forward_passes_are_counted() -> None:
    module = Quadratic(random(50), random(50, 1).abs())
    with counted() as effort:
        here = around(module)
        here.uphill({"weight": random(50)})
        here.path({"weight": random(50, 2)})
    assert effort.forwards(len(TOKENS)) == 2 + STRETCHES
    with counted() as effort:
        found = here.largest_noise(seed=0)
    assert effort.forwards(len(TOKENS)) >= 2 * PAIRS and found.evaluations >= 2
