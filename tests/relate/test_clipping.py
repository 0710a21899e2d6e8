"""Clipping is advised where a step is as long as its gradient, at a norm that the run had when it was calm."""

from __future__ import annotations

import math

import polars as pl
import pytest

from hnf_offline.findings import Advice
from hnf_offline.relate.clipping import CALM_ROWS, clip
from hnf_offline.table import table

from .planted import alarm, rows, spike
from .test_stories import CALM, a_log, a_profile, tell

ONSET = 185
CLIMB = {step: 0.3 + 0.005 * step for step in range(10, 200, 10)}
ADAM = table(rows("adam.lag_rms", list(CLIMB), [1.0] * len(CLIMB)))


def norms(log: pl.DataFrame, **at: float) -> pl.DataFrame:
    planted = {int(step[1:]): norm for step, norm in at.items()}
    return log.with_columns(
        pl
        .col("step")
        .replace_strict(planted, default=pl.col("grad_norm"), return_dtype=pl.Float64)
        .alias("grad_norm")
    )


def advised(profile: pl.DataFrame, log: pl.DataFrame) -> list[Advice]:
    _, found = tell(profile, log, spike(1, ONSET), alarm(150, "edge"))
    return [one for one in found if one.policy.startswith("clip=")]


def test_sgd_is_told_to_clip_at_its_calm_norm() -> None:
    growing = norms(a_log(), s140=1.7, s180=6.0, s184=50.0, s20=9.0)
    (told,) = advised(a_profile(CLIMB), growing)
    assert told.policy == "clip=1.7" and told.numbers["gradient_norm"] == 1.7
    assert "1.7" in told.action and f"the {CALM_ROWS} calm rows of the log up to step 174" in told.because
    assert told.spike == 1 and f"checkpoint {told.step}" in told.action


def test_it_comes_after_the_lower_rate_and_starts_where_that_does() -> None:
    _, found = tell(a_profile(CLIMB), a_log(), spike(1, ONSET), alarm(150, "edge"))
    assert found[0].policy.startswith("lr-cap=") and found[1].policy == "clip=1"
    assert found[0].step == found[1].step


def test_what_an_earlier_spike_left_behind_is_not_calm() -> None:
    after = norms(a_log(), s90=2.5, s125=24.0, s140=30.0, s100=9.0)
    earlier = spike(1, 110, end=150)
    _, found = tell(a_profile(CLIMB), after, earlier, spike(2, ONSET), alarm(150, "edge"))
    (told,) = (one for one in found if one.policy.startswith("clip="))
    assert told.spike == 2 and told.policy == "clip=2.5", "step 100 is within ten steps of the first onset"
    lost, later = spike(1, 110, recovered=False), spike(2, ONSET)
    (told,) = clip(a_profile(CLIMB), after, [lost, later], later, 100)
    assert told.policy == "clip=2.5", "nothing after a spike that never ends is calm"


def test_adam_is_not_told_to_clip() -> None:
    assert not advised(pl.concat([a_profile(CLIMB), ADAM]), a_log())


def test_no_norms_no_advice_and_broken_norms_are_passed_over() -> None:
    assert not advised(a_profile(CLIMB), a_log().drop("grad_norm"))
    few = a_log().filter(pl.col("step") > 165)
    assert not advised(a_profile(CLIMB), few)
    (told,) = advised(a_profile(CLIMB), norms(a_log(), s140=math.nan, s141=math.inf))
    assert told.policy == "clip=1"


@pytest.mark.parametrize("cause", ["bad batch", "raised rate"])
def test_other_causes_are_not_clipped(cause: str) -> None:
    if cause == "bad batch":
        _, found = tell(a_profile(CALM | {150: 0.35}), a_log(), spike(1, 150, steps=1))
    else:
        ratio = {step: (0.6 if step < 150 else 0.2) for step in range(10, 300, 10)} | {150: 5.0}
        raised = alarm(150, "headroom", quantity="optimizer.headroom")
        _, found = tell(a_profile(ratio), a_log(150), spike(1, 151, recovered=False), raised)
    assert found and not any(one.policy.startswith("clip=") for one in found)
