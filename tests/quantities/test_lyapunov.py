"""The local rate against perturbations that torch's own optimizers carry along on a quadratic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hnf_offline.quantities.lyapunov import Mode, local_rate
from hnf_offline.quantities.optimizer import adam_step_metric, sgd_step_size

#: Curvatures of the quadratic, the sharpest first, and how long a perturbation is watched.
CURVATURES, STEPS = (3.0, 1.1, 0.4), 400
BEGUN = 10_000


def measured_rate(optimizer: torch.optim.Optimizer, weights: torch.Tensor, second=None) -> float:
    """Slope of ln of the perturbation over steps; its envelope, as roots are complex below the edge."""
    curvature = torch.tensor(CURVATURES, dtype=torch.float64)
    sizes: list[float] = []
    rescaled = 0.0
    for _ in range(STEPS):
        if second is not None:
            state = optimizer.state[weights]
            beta2 = optimizer.param_groups[0]["betas"][1]
            state.setdefault("exp_avg", torch.zeros_like(weights))
            state["step"] = torch.tensor(float(BEGUN - 1))
            # v_hat of the step is what it was made to be: the perturbation's own square is far below it.
            state["exp_avg_sq"] = second * (1 - beta2**BEGUN) / beta2
        optimizer.zero_grad()
        (0.5 * (curvature * weights.square()).sum()).backward()
        optimizer.step()
        # Only the sharpest direction was perturbed. It is kept small, as its own square enters Adam's second moment.
        size = abs(float(weights[0].detach()))
        sizes.append(rescaled + math.log(size) if size else -math.inf)
        if not 1e-130 < size < 1e-70 and size:
            buffers = [one for name, one in optimizer.state[weights].items() if name != "exp_avg_sq"]
            for tensor in (weights.data, *(one for one in buffers if one is not None and one.ndim)):
                tensor.mul_(1e-100 / size)
            rescaled += math.log(size / 1e-100)
    half = STEPS // 2
    return (max(sizes[-40:]) - max(sizes[half - 40 : half])) / half


def perturbed() -> torch.Tensor:
    return torch.tensor([1e-100, 0.0, 0.0], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("ratio", [0.3, 0.9, 0.98, 1.02, 1.3])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_adam_with_a_second_moment_that_stands_still(momentum: float, ratio: float) -> None:
    second = torch.tensor([0.04, 0.04, 0.04], dtype=torch.float64)
    unit = float(adam_step_metric(1.0, momentum, second[0], 1e-8))
    rate = ratio / (CURVATURES[0] * unit)
    weights = perturbed()
    optimizer = torch.optim.Adam([weights], lr=rate, betas=(momentum, 0.999), eps=1e-8)
    expected = local_rate(Mode(ratio, momentum))
    assert measured_rate(optimizer, weights, second) == pytest.approx(expected, rel=0.03, abs=2e-3)
    assert (expected > 0) == (ratio > 1)


@pytest.mark.parametrize("ratio", [0.3, 0.9, 1.02, 1.3])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.5, 0.0, False), (0.9, 0.0, False), (0.9, 0.5, False), (0.9, 0.0, True)],
)
def test_sgd_heavy_ball_and_nesterov(momentum: float, dampening: float, nesterov: bool, ratio: float) -> None:
    rate = ratio / (CURVATURES[0] * sgd_step_size(1.0, momentum, dampening, nesterov))
    weights = perturbed()
    optimizer = torch.optim.SGD([weights], lr=rate, momentum=momentum, dampening=dampening, nesterov=nesterov)
    expected = local_rate(Mode(ratio, momentum, nesterov))
    assert measured_rate(optimizer, weights) == pytest.approx(expected, rel=0.03, abs=2e-3)


@given(st.floats(1e-6, 100.0), st.floats(0.0, 0.999), st.booleans())
def test_the_rate_is_positive_exactly_beyond_the_edge(ratio: float, momentum: float, nesterov: bool) -> None:
    if abs(ratio - 1) < 1e-9:
        return
    rate = local_rate(Mode(ratio, momentum, nesterov))
    assert rate > 0 if ratio > 1 else rate < 1e-12


@given(st.floats(0.0, 0.999), st.booleans())
def test_at_the_edge_a_perturbation_keeps_its_size_and_a_flat_direction_too(
    momentum: float, nesterov: bool
) -> None:
    assert local_rate(Mode(1.0, momentum, nesterov)) == pytest.approx(0.0, abs=1e-9)
    assert local_rate(Mode(0.0, momentum, nesterov)) == pytest.approx(0.0, abs=1e-9)


@given(st.floats(0.0, 0.99), st.booleans(), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_it_falls_up_to_one_ratio_and_rises_from_there(
    momentum: float, nesterov: bool, one: float, other: float
) -> None:
    quietest = Mode(0.0, momentum, nesterov).quietest
    near, far = sorted((one, other))
    beyond = [local_rate(Mode(quietest + shift, momentum, nesterov)) for shift in (near, far)]
    below = [local_rate(Mode(quietest - shift, momentum, nesterov)) for shift in (near, far)]
    assert beyond[0] <= beyond[1] + 1e-9 and below[0] <= below[1] + 1e-9


def test_negative_curvature_grows_and_what_is_unknown_stays_so() -> None:
    assert local_rate(Mode(-0.1, 0.9)) > 0
    assert local_rate(Mode(0.5, 0.0)) == -math.inf, "one step of gradient descent is at the bottom"
    assert math.isnan(local_rate(Mode(math.nan, 0.9))) and local_rate(Mode(math.inf, 0.9)) == math.inf
