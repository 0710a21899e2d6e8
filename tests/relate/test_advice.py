"""What each piece of advice is called as a policy of a retraining, and where it starts when S was zoomed."""

from __future__ import annotations

import re
from dataclasses import replace

import polars as pl
import pytest

from hnf_offline.findings import Advice, Story
from hnf_offline.table import table

from .planted import alarm, rows, spike
from .test_stories import CALM, a_log, a_profile, tell

RATE = re.compile(r"lr-cap=([0-9.e-]+)$")


def dense(ratio: dict[int, float], rate: float = 5e-3) -> pl.DataFrame:
    added = [
        *rows("hessian.stability_ratio", list(ratio), list(ratio.values())),
        *rows("optimizer.learning_rate", list(ratio), [rate] * len(ratio)),
    ]
    return table([replace(row, source="zoom") for row in added])


def told_of_a_jump(profile: pl.DataFrame) -> tuple[Story, tuple[Advice, ...]]:
    raised = alarm(150, "headroom", quantity="optimizer.headroom")
    return tell(profile, a_log(150), spike(1, 151, recovered=False), raised)


def test_a_cap_is_the_rate_of_the_text() -> None:
    ratio = {step: (0.6 if step < 150 else 0.2) for step in range(10, 300, 10)} | {150: 5.0}
    _, advised = told_of_a_jump(a_profile(ratio))
    match = RATE.match(advised[0].policy)
    assert match is not None
    assert float(match[1]) == pytest.approx(5e-3 / 0.6, rel=1e-8)
    assert advised[-1].action.startswith("restart")
    assert advised[-1].policy == ""


def test_without_s_the_rate_before_the_rise_is_kept() -> None:
    _, advised = told_of_a_jump(table())
    assert "keep it at 0.005" in advised[0].action
    assert advised[0].policy == "lr-cap=0.005"


def test_a_lasting_cut_is_the_rate_of_the_text() -> None:
    ratio = {step: 0.3 + 0.005 * step for step in range(10, 200, 10)}
    _, advised = tell(a_profile(ratio), a_log(), spike(1, 185), alarm(150, "edge"))
    match = RATE.match(advised[0].policy)
    assert match is not None
    assert float(match[1]) == pytest.approx(advised[0].numbers["recommended_learning_rate"], rel=1e-8)
    unlogged = a_profile(ratio).filter(pl.col("quantity") == "hessian.stability_ratio")
    _, advised = tell(unlogged, a_log().drop("learning_rate"), spike(1, 185), alarm(150, "edge"))
    assert "0.7 times its value" in advised[0].action
    assert advised[0].policy == "lr-scale=0.7"


def test_a_bad_batch_is_skipped_and_a_resume_cannot_be_tested() -> None:
    _, advised = tell(a_profile(CALM | {150: 0.35}), a_log(), spike(1, 150, steps=1))
    assert advised[0].policy == "skip=150"
    _, advised = tell(a_profile(CALM), a_log(), spike(1, 150, at_resume=True))
    assert advised[0].policy == ""
    _, advised = tell(table(), a_log(), spike(1, 150, steps=1))
    assert advised[0].policy == "", "what is not known cannot be tested"


def test_the_largest_stable_rate_is_that_of_a_checkpoint_not_of_a_single_step() -> None:
    ratio = {step: (0.6 if step < 150 else 0.2) for step in range(10, 300, 10)} | {150: 5.0}
    between = {step: 0.6 + 0.01 * (step - 140) for step in range(141, 150)}
    told, advised = told_of_a_jump(pl.concat([a_profile(ratio), dense(between)]))
    assert "at checkpoint 140 S was 0.6, so at most 0.0083" in told.sentence
    assert "lr/S at checkpoint 140" in advised[0].action
    assert advised[0].step == 140
    assert advised[0].policy == f"lr-cap={5e-3 / 0.6:.9g}"


def test_s_within_the_beginning_spike_does_not_lower_the_advice() -> None:
    ratio = {step: min(0.3 + 0.005 * step, 0.9) for step in range(10, 300, 10)}
    burst = {145: 0.95, 146: 1.02, 147: 1.3, 148: 2.0, 149: 9.0}
    known = alarm(146, "edge", value=1.02)
    told, advised = tell(pl.concat([a_profile(ratio), dense(burst)]), a_log(), spike(1, 150), known)
    assert (told.lead, told.resolution, told.lead_text) == (4, 1, "4 steps")
    assert (
        "S crossed 1 at step 146, 4 steps before the loss left its band; S was 9 at step 149" in told.sentence
    )
    assert advised[0].numbers["recommended_learning_rate"] == pytest.approx(0.7 * 5e-3)
    assert advised[0].step == 140
