"""The named stop rules: each asks for more than the one before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hnf_offline.linalg.lanczos import lanczos_extremes
from hnf_offline.linalg.stopping import ACCURACIES, CERTIFIED, SCREEN, STANDARD
from hnf_offline.options import AccuracyName
from tests.linalg.planted import start


def test_users_are_offered_every_rule_in_order_of_cost() -> None:
    assert [name.value for name in AccuracyName] == list(ACCURACIES)
    assert list(ACCURACIES.values()) == [SCREEN, STANDARD, CERTIFIED]
    for less, more in pairwise(ACCURACIES.values()):
        assert less.residual > more.residual
        assert less.minimum < more.minimum
        assert less.fresh < more.fresh
    # Only what is certified is asked of a vector that knows nothing of what was found.
    assert CERTIFIED.independent and not STANDARD.independent


class Diagonal:
    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.dimension = values, len(values)

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        return self.values * vector


@pytest.mark.parametrize("seed", range(5))
def test_a_stricter_rule_spends_more_and_leaves_less(seed: int) -> None:
    values = torch.cat([torch.linspace(-0.5, 0.5, 150), torch.tensor([1.0, 0.8])]).double()
    found = [lanczos_extremes(Diagonal(values), start(152, seed), rule=rule) for rule in ACCURACIES.values()]
    for less, more in pairwise(found):
        assert less.products <= more.products
        assert more.largest.residual <= less.largest.residual
    assert found[0].products < found[-1].products


def test_the_dominant_end_comes_with_its_own_vector() -> None:
    values = torch.cat([torch.linspace(-0.5, 0.5, 50), torch.tensor([-3.0, 1.0])]).double()
    found = lanczos_extremes(Diagonal(values), start(52, 0), rule=STANDARD)
    end, vector = found.dominant
    assert end.value == pytest.approx(-3.0, rel=0.01) and abs(float(vector[50])) > 0.99
    upwards = lanczos_extremes(Diagonal(-values), start(52, 0), rule=STANDARD)
    assert upwards.smallest_vector is None and upwards.dominant[0] is upwards.largest
    one_end = lanczos_extremes(Diagonal(values), start(52, 0), rule=replace(STANDARD, ends="largest"))
    assert one_end.dominant[0] is one_end.largest, "the other end was not looked for"
