"""What is told while a checkpoint is measured."""

from __future__ import annotations

from hnf_offline.profile.settings import Progress
from hnf_offline.profile.telling import Teller


def test_before_any_layer_it_is_the_whole_model_that_is_measured() -> None:
    told: list[Progress] = []
    teller = Teller(told.append, total=3, cached=0)
    teller.part(10, 0, 38, 0.2)
    teller.part(10, 4, 38, 0.6)
    assert [one.part for one in told] == ["whole model", "layers 4 of 38"]
    assert [one.share for one in told] == [0.2, 0.6]
