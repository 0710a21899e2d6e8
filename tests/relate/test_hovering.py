"""Runs that hover at the edge: told in the verdict, and told apart in the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hnf_offline.relate.hovering import HOVERING, HOVERS, OTHERS, hovering_share, no_warning
from hnf_offline.relate.whole import find
from hnf_offline.table import table

from .planted import relaxation, rows, run_of

STUDY = Path(__file__).parents[2] / "reports" / "study" / "readings"


def stretch(start: int, end: int, regime: str) -> dict[str, object]:
    return {"start": start, "end": end, "regime": regime}


def test_only_the_share_of_steps_at_the_edge_counts() -> None:
    run = [stretch(0, 300, "climb"), stretch(300, 400, "hover"), stretch(400, 500, "aftershock")]
    assert hovering_share(run) == pytest.approx(0.2) and no_warning(run) == ""
    longer = [*run, stretch(500, 600, "hover")]
    assert "for 33 % of the measured steps" in no_warning(longer)
    assert hovering_share([]) == 0 and no_warning([]) == ""


def test_a_run_that_hovers_is_told_that_no_warning_is_possible_and_one_that_climbs_is_not() -> None:
    made = relaxation()
    steps = made.profile.filter(pl.col("quantity") == "hessian.stability_ratio")["step"].to_numpy()
    level = np.full(steps.size, 1.02) + 0.03 * np.random.default_rng(0).standard_normal(steps.size)
    hover = table([
        *rows("hessian.stability_ratio", steps, level),
        *rows("optimizer.learning_rate", steps, np.full(steps.size, 1e-2)),
    ])
    # A spike at the end of a long stretch at the edge: the others lie in aftershocks.
    quiet = made.log.with_columns(
        pl.when(pl.col("step") < 1000).then(2.0 + 0.01 * (pl.col("step") % 7)).otherwise("loss").alias("loss")
    )
    told = find(run_of(quiet, hover), hover)
    assert told.spikes and "no warning is possible in this regime" in told.verdict["caveat"]
    ours = next(one for one in told.relations if one.rule == "stability alarm")
    assert ours.p_value is None or ours.p_value > 0.05, "a run whose own alarms are no luck is not doubted"
    climbs = find(run_of(made.log, made.profile), made.profile)
    assert "no warning" not in climbs.verdict["caveat"]


@pytest.mark.skipif(not STUDY.exists(), reason="the study's readings are not here")
def test_the_figures_are_those_of_the_study() -> None:
    from benchmarks.study import readings
    from benchmarks.study.hovering import hovers
    from benchmarks.study.page import unseen
    from benchmarks.study.scoring import WINDOW, pooled
    from hnf_offline.relate.relations import PRIMARY

    runs = unseen(readings.kept(STUDY))
    for expected, sought in ((HOVERING, True), (OTHERS, False)):
        found = pooled([run for run in runs if hovers(run) is sought], PRIMARY, WINDOW)
        assert found is not None and found.precision.value is not None and found.chance_precision is not None
        assert (round(found.precision.value, 2), round(found.chance_precision, 2)) == expected
    assert HOVERS == 0.2


def test_a_run_whose_own_alarms_are_no_luck_is_not_doubted() -> None:
    from dataclasses import replace

    from hnf_offline.relate.verdict import verdict

    made = relaxation()
    found = find(run_of(made.log, made.profile), made.profile)
    hovers = (stretch(0, 600, "hover"), stretch(600, 1200, "climb"))

    def caveat(p_value: float | None) -> str:
        relations = [
            replace(one, p_value=p_value) if one.rule == "stability alarm" else one for one in found.relations
        ]
        return verdict(
            made.profile, made.log, found.spikes, found.stories, relations, (), found.advice, hovers
        )["caveat"]

    assert "no warning is possible" in caveat(0.3) and "no warning is possible" in caveat(None)
    assert "no warning is possible" not in caveat(0.01)
