"""Entries that read off what a solver found, on operators and maps whose answer was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hnf_offline.linalg.density import spectral_density
from hnf_offline.linalg.lanczos import lanczos_extremes
from hnf_offline.linalg.second_derivative import second_derivative_norm
from hnf_offline.linalg.trace import trace as estimated_trace
from hnf_offline.quantities.estimate import estimated_second_moment, stability_ratio_estimate
from hnf_offline.quantities.hessian import lambda_max, lambda_min, product_error, unstable_mass_change
from hnf_offline.quantities.jacobian import hnf_curvature, left_out
from hnf_offline.quantities.jacobian import second_derivative_norm as d2_norm
from hnf_offline.quantities.landscape import LargestNoise, linear_barrier, local_sharpness, pac_bayes
from hnf_offline.quantities.optimizer import adam_step_metric, saved_learning_rate
from hnf_offline.quantities.precision import (
    loss_change_bf16,
    loss_change_fp16,
    nonfinite_bf16,
    nonfinite_fp16,
    precisions_left_out,
)
from hnf_offline.quantities.replay import replay_loss
from hnf_offline.quantities.similarity import principal_information
from hnf_offline.quantities.spectrum import negative_share, share_above_edge, trace
from hnf_offline.quantities.update import first_order_change, predicted_change
from tests.linalg.planted import symmetric


class Dense:
    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @property
    def dimension(self) -> int:
        return len(self.matrix)

    def __call__(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector


#: Sums: 7 above 0, 3 below; two of eight above 1.
EIGENVALUES = [4.0, 1.5, 1.0, 0.5, -0.5, -0.5, -1.0, -1.0]


def test_trace_negative_share_and_share_above_the_edge_of_a_planted_spectrum() -> None:
    operator = Dense(symmetric(EIGENVALUES))
    assert trace(estimated_trace(operator, products=12)) == pytest.approx(4.0)
    density = spectral_density(operator)
    assert negative_share(density).value == pytest.approx(0.3)
    assert share_above_edge(density).value == pytest.approx(2 / 8)


def test_ends_of_a_planted_spectrum() -> None:
    start = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = lanczos_extremes(Dense(symmetric(EIGENVALUES)), start, residual=1e-9)
    assert (lambda_max(found), lambda_min(found)) == pytest.approx((4.0, -1.0))


def test_curvature_of_softmax_where_it_is_highest() -> None:
    # sqrt(2 / 27) at p = (.7887, .2113): the supremum over all scores.
    p = 0.5 + 1 / math.sqrt(12)
    scores = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    found = second_derivative_norm(lambda z: z.softmax(dim=-1), scores).value
    assert d2_norm(found).item() == pytest.approx(math.sqrt(2 / 27), rel=1e-3)
    assert hnf_curvature(found).item() == pytest.approx(math.sqrt(2 / 27) / 2, rel=1e-3)


def test_the_estimate_is_s_where_squared_gradients_are_the_same_everywhere() -> None:
    # Then the estimated second moment is the true one, and so is S: eta (1 - b) / (2 (1 + b)) / sqrt(v) times 4.
    squares = torch.full((8,), 0.25, dtype=torch.float64)
    second_moment = estimated_second_moment(squares, 4.0)
    assert second_moment.tolist() == [1.0] * 8
    metric = adam_step_metric(0.19, 0.9, second_moment, 0.0)
    root = metric.sqrt()
    start = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scaled = lanczos_extremes(Dense(root[:, None] * symmetric(EIGENVALUES) * root), start, residual=1e-9)
    assert stability_ratio_estimate(scaled) == pytest.approx(4 * 0.19 / 38)
    # Half of it follows each square, and the sum is that of all squares times the scale.
    uneven = estimated_second_moment(torch.tensor([0.0, 4.0]), 3.0)
    assert uneven.tolist() == [3.0, 9.0]


def test_the_loss_of_a_uniform_guess_and_what_it_costs_to_cast_it() -> None:
    logits, targets = torch.zeros(6, 10), torch.arange(6)
    loss = replay_loss(torch.nn.functional.cross_entropy(logits, targets))
    assert loss.item() == pytest.approx(math.log(10))
    for change in (loss_change_bf16, loss_change_fp16):
        assert change(loss, loss + 0.5).item() == pytest.approx(0.5)
        assert change(loss, torch.tensor(math.nan)).isnan()


def test_what_leaves_the_range_of_a_half_precision() -> None:
    values = torch.tensor([1.0, 7e4, -7e4, 3.0])
    assert nonfinite_fp16(values.half()).item() == 0.5
    assert nonfinite_bf16(values.bfloat16()).item() == 0.0  # it has the range of a float32
    assert nonfinite_bf16(torch.tensor([1.0, 3.4e38, 0.0, 0.0]).bfloat16()).item() == 0.25


def test_slope_and_curvature_of_a_parabola() -> None:
    # L(w) = w'Hw / 2: the change of one step is known.
    hessian = symmetric(EIGENVALUES)
    weight = torch.linspace(-1, 1, 8, dtype=torch.float64)
    step = torch.linspace(0, 0.1, 8, dtype=torch.float64)

    def loss(at: Tensor) -> float:
        return (at @ hessian @ at / 2).item()

    gradient = hessian @ weight
    tiny = 1e-7
    slope = (loss(weight - tiny * step) - loss(weight)) / tiny
    assert first_order_change(gradient, step).item() == pytest.approx(slope, rel=1e-5)
    changed = loss(weight - step) - loss(weight)
    assert predicted_change(gradient, step, hessian @ step).item() == pytest.approx(changed)


def test_sharpness_noise_and_barrier_of_curves_that_are_known() -> None:
    # w^2 at w = 1, one step of rho up its gradient: (1 + rho)^2 - 1
    assert local_sharpness(1.0, 1.05**2) == pytest.approx(0.1025)
    places = np.linspace(0, 1, 9)
    # a (1 - a) is highest over its chord in the middle, and a line has no barrier
    assert linear_barrier(2 + 3 * places + places * (1 - places)) == pytest.approx(0.25)
    assert linear_barrier(2 + 3 * places) == pytest.approx(0, abs=1e-12)
    assert linear_barrier(2 - places * (1 - places)) == 0
    # sum_i w_i^2 H_ii = 5, so that a rise of .1 nats is met at sqrt(.2 / 5)
    assert pac_bayes(LargestNoise(math.sqrt(0.2 / 5), 0.1, 0.3, True, 9)) == pytest.approx(0.2)


@pytest.mark.parametrize("correlation", [0.6, 0.9])
def test_information_between_two_directions_is_that_of_gaussians(correlation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 40, 512, 1, generator=generator, dtype=torch.float64)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    direction = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    truth = -0.5 * math.log(1 - correlation**2)
    assert principal_information(x * direction, y * direction.flip(0)).item() == pytest.approx(
        truth, abs=0.04
    )


def test_what_is_handed_on_is_what_was_found() -> None:
    assert saved_learning_rate(3e-4) == 3e-4
    assert product_error(0.02) == 0.02
    assert unstable_mass_change(0.7, 0.2) == pytest.approx(0.5)
    assert (left_out(2.0), precisions_left_out(1.0)) == (2.0, 1.0)
