"""A fresh vector finds what the start did not meet, or the value is not certified."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from hnf_offline.linalg.certify import CertifyingSpace, certified_extremes
from hnf_offline.linalg.krylov import KrylovSpace, advance_together
from hnf_offline.linalg.lanczos import lanczos_extremes
from hnf_offline.linalg.stopping import CERTIFIED, STANDARD, StopRule
from tests.linalg.planted import start, symmetric

SIZE = 200


@dataclass(frozen=True)
class Diagonal:
    """A symmetric operator in the basis of its eigenvectors."""

    eigenvalues: torch.Tensor

    @property
    def dimension(self) -> int:
        return len(self.eigenvalues)

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        return self.eigenvalues * vector


def plateau(seed: int) -> tuple[Diagonal, torch.Tensor, torch.Tensor]:
    """A spectrum whose top the start hardly meets (weight 1e-3), as after another eigenvector was on top before.

    A bulk around zero, one to eight outliers above it of which the first two are .5 to 1 of each other, in every
    second case negative ones of about the same size, as in +/- pairs.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, count: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    bulk = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    bulk = bulk.square() * bulk.sign()
    values = bulk / bulk.abs().max() * uniform(0.05, 0.5)
    outliers = 2 + seed % 7
    values[:outliers] = torch.cumprod(torch.cat([torch.ones(1), uniform(0.5, 1.0, outliers - 1)]), 0)
    if seed % 2:
        values[20:23] = -uniform(0.3, 1.1) * torch.cumprod(uniform(0.6, 1.0, 3), 0)
    values = values.sort().values
    first = torch.randn(SIZE, generator=generator, dtype=torch.float64) * values.abs()
    first = 0.43 * first / first.norm() + 0.05 * start(SIZE, seed) / SIZE**0.5
    first[-2], first[-1] = 0.9, 1e-3
    return Diagonal(values), first, start(SIZE, seed + 10_000)


def off(found: float, truth: torch.Tensor) -> float:
    return abs(found - float(truth)) / abs(float(truth))


def test_a_start_that_hardly_meets_the_top_is_seen_through():
    """Five hundred planted plateaus: found, or not certified, at both ends, but for one in a hundred."""
    missed = {"largest": 0, "smallest": 0}
    found = certified = 0
    for seed in range(500):
        operator, first, fresh = plateau(seed)
        ends = certified_extremes(operator, first, fresh)
        found += off(ends.largest.value, operator.eigenvalues[-1]) <= 0.01
        certified += ends.largest.certified
        for name, truth in (("largest", operator.eigenvalues[-1]), ("smallest", operator.eigenvalues[0])):
            end = getattr(ends, name)
            missed[name] += end.certified and off(end.value, truth) > 0.01
    assert max(missed.values()) <= 5
    assert found >= 490
    assert certified >= 250  # refusing everything would be no certificate


def test_the_plateaus_do_deceive_a_first_chain():
    deceived = flagged = 0
    for seed in range(200):
        operator, first, _ = plateau(seed)
        largest = lanczos_extremes(operator, first, rule=replace(CERTIFIED, residual=0.05)).largest
        if off(largest.value, operator.eigenvalues[-1]) > 0.05:
            deceived += 1
            flagged += not largest.certified
    assert deceived >= 40
    assert flagged >= 0.4 * deceived


@pytest.mark.parametrize(
    ("planted", "met", "missed"), [((0.0413, 0.0349), -2, "largest"), ((0.0403, -0.0446), -1, "smallest")]
)
def test_the_failures_seen_on_real_layers_are_found(planted, met, missed):
    # A plateau at .0349 while .0413 exists, and nearly opposite ends of which the start meets one.
    bulk = torch.linspace(-0.008, 0.012, 150, dtype=torch.float64)
    values = torch.cat([torch.tensor(planted, dtype=torch.float64), bulk]).sort().values
    first = torch.full_like(values, 1e-3)
    first[met], first[5:25] = 1.0, 0.02
    truth = values[-1] if missed == "largest" else values[0]
    alone = lanczos_extremes(Diagonal(values), first, rule=replace(STANDARD, ends="largest"))
    assert off(getattr(alone, missed).value, truth) > 0.1
    ends = certified_extremes(Diagonal(values), first, start(len(values)))
    assert off(ends.largest.value, values[-1]) < 0.01
    assert off(ends.smallest.value, values[0]) < 0.01


def test_what_both_chains_agree_on_is_certified_and_within_a_thousandth():
    values = torch.cat([torch.linspace(-0.3, 0.3, 100), torch.tensor([1.0, 0.7, -0.8])]).double()
    matrix = symmetric(values.tolist())

    @dataclass
    class Dense:
        products: int = 0
        dimension: int = len(matrix)

        def __call__(self, vector):
            self.products += 1
            return matrix @ vector

    operator = Dense()
    ends = certified_extremes(operator, start(103), start(103, 2))
    assert ends.largest.certified and ends.smallest.certified
    assert ends.largest.value == pytest.approx(1.0, rel=1e-3)
    assert ends.smallest.value == pytest.approx(-0.8, rel=1e-3)
    assert ends.products == operator.products <= CERTIFIED.maximum
    rest = matrix @ ends.vector - ends.largest.value * ends.vector
    assert float(rest.norm()) == pytest.approx(ends.largest.residual, abs=1e-12)


def test_a_second_chain_meets_both_of_two_equal_eigenvalues():
    # One chain sees one copy only: two vectors together show that the end is double.
    values = torch.cat([torch.linspace(-0.3, 0.3, 60), torch.tensor([1.0, 1.0])]).double()
    space = CertifyingSpace(start(62), start(62, 2), StopRule(1e-6, 4, maximum=64, fresh=8))
    while not space.finished:
        space.advance(values * space.vector)
    assert space._ritz is not None
    assert float(space._ritz.values[-2]) == pytest.approx(1.0, abs=1e-6)
    assert space.result().largest.certified


def test_nothing_is_certified_where_the_products_end_first():
    operator, first, fresh = plateau(3)
    ends = certified_extremes(operator, first, fresh, StopRule(0.02, 4, maximum=9, fresh=4))
    assert ends.products == 9
    assert not ends.largest.certified


def test_an_invariant_start_goes_on_with_the_fresh_vector():
    # One product exhausts the first chain; alone it would call .5 both ends.
    values = torch.tensor([-1.0, 0.2, 0.5, 2.0], dtype=torch.float64)
    ends = certified_extremes(Diagonal(values), torch.eye(4, dtype=torch.float64)[2], start(4))
    assert ends.largest.value == pytest.approx(2.0)
    assert ends.smallest.value == pytest.approx(-1.0)


def test_a_whole_small_space_and_what_is_not_finite_end():
    tiny = certified_extremes(Diagonal(torch.tensor([3.0])), torch.ones(1), torch.ones(1))
    assert (tiny.largest.value, tiny.products, tiny.largest.certified) == (3.0, 1, True)
    bad = certified_extremes(Diagonal(torch.full((5,), math.nan)), torch.ones(5), torch.ones(5))
    assert math.isnan(bad.largest.value) and not bad.largest.certified


def test_certifying_spaces_step_with_the_others():
    operators = [plateau(seed) for seed in (1, 2)]
    alone = [certified_extremes(*operators[0]), lanczos_extremes(*operators[1][:2])]
    spaces: list[KrylovSpace] = [
        CertifyingSpace(operators[0][1], operators[0][2]),
        KrylovSpace(operators[1][1], STANDARD),
    ]
    while running := [place for place, space in enumerate(spaces) if not space.finished]:
        advance_together(
            [spaces[place] for place in running],
            [operators[place][0](spaces[place].vector) for place in running],
        )
    assert [space.result().largest for space in spaces] == [ends.largest for ends in alone]
