"""Formulas of layer maps and of reduced precision on numbers for which the answer is known on paper."""

from __future__ import annotations

import math

import pytest
import torch

from hnf_offline.quantities import catalogue
from hnf_offline.quantities.jacobian import (
    OUTPUT_ERROR,
    deflated_condition,
    hnf_curvature,
    largest_stretch,
    log_singular_spread,
    newton_curvature,
    precision_bits,
    stretch_over_typical,
)
from hnf_offline.quantities.precision import (
    loss_change_bf16,
    nonfinite_fp16,
    output_error_bf16,
    output_error_fp16,
)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_singular_values_of_an_isometry_and_of_a_projection() -> None:
    isometry = torch.full((2, 6), 3.0, dtype=torch.float64)
    assert log_singular_spread(isometry).tolist() == [0.0, 0.0]
    assert deflated_condition(isometry[:, 0], isometry[:, -1]).tolist() == [1.0, 1.0]
    assert stretch_over_typical(isometry[:, 0], isometry.square().mean(dim=1).sqrt()).tolist() == [1.0, 1.0]
    assert deflated_condition(numbers(2.0), numbers(0.0)).item() == math.inf
    # half of the singular values e, half 1: log s is 1 or 0, whose deviation is 1/2
    assert log_singular_spread(numbers(math.e, math.e, 1.0, 1.0)[None]).item() == pytest.approx(0.5)
    assert largest_stretch(numbers(4.0, 2.0)).tolist() == [4.0, 2.0]


def test_curvatures_of_the_square_and_of_layer_norm() -> None:
    """x^2 at x: D2 = 2, kappa = 1, J = 2 x, Newton curvature 1 / (4 x^2). LayerNorm: 1 / sqrt(3 n), whatever s is."""
    assert hnf_curvature(numbers(2.0)).item() == 1.0
    x = numbers(0.5, 3.0)
    assert newton_curvature(numbers(2.0, 2.0), 2 * x).tolist() == pytest.approx(
        (1 / (4 * x.square())).tolist()
    )
    for scale in (0.01, 7.0):
        curved = numbers(2 / (math.sqrt(3 * 64) * scale**2))
        assert newton_curvature(curved, numbers(1 / scale)).item() == pytest.approx(1 / math.sqrt(3 * 64))


def test_bits_are_those_of_the_larger_term() -> None:
    one = numbers(1.0)
    assert torch.finfo(torch.bfloat16).eps / 2 == OUTPUT_ERROR
    # the identity needs as many bits as it is to keep; a map that cancels 10 bits needs 10 more
    assert precision_bits(one, 0 * one, one, one).item() == pytest.approx(8.0)
    assert precision_bits(one, 0 * one, 1024 * one, one).item() == pytest.approx(18.0)
    # kappa = 2^12, |x| = 1: 1/2 log2(2^12 2^8) = 10
    assert precision_bits(one, 2 * 4096 * one, one, one).item() == pytest.approx(10.0)


def test_what_casting_changed() -> None:
    assert loss_change_bf16(numbers(2.0), numbers(2.5)).item() == 0.5
    output, off = numbers(3.0, 4.0), numbers(3.0, 4.5)
    assert (
        output_error_bf16(output, off).item() == output_error_fp16(output, off).item() == pytest.approx(0.1)
    )
    overflowed = numbers(1.0, math.inf, math.nan, -math.inf)
    assert nonfinite_fp16(overflowed).item() == 0.75
    assert nonfinite_fp16(output).item() == 0.0
    assert not math.isfinite(output_error_fp16(numbers(1.0, 1.0, 1.0, 1.0), overflowed).item())


def test_the_catalogue_promises_them_in_the_tier_full() -> None:
    names = [name for name, entry in catalogue().items() if name.startswith(("map.", "precision."))]
    # What the saved optimizer would do next is known from its gradient alone.
    assert catalogue()["precision.lost_updates"].tier == "gradient"
    names.remove("precision.lost_updates")
    assert len(names) == 16
    assert {catalogue()[name].tier for name in names} == {"full"}
