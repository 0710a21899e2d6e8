"""What the picture of a retraining holds, before anything is drawn."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from hnf_offline.findings import Alarm
from hnf_offline.report.retraining_panels import picture
from hnf_offline.report.retraining_svg import NAMES
from hnf_offline.report.retraining_svg import picture as svg
from hnf_offline.report.retraining_words import facts
from hnf_offline.report.svg import LEFT, WIDTH

from . import retrainings as made


def names(panel) -> list[str]:
    return [one.strip.label for one in panel.strips]


def test_losses_lie_over_the_log_with_some_steps_before(tmp_path) -> None:
    one = made.zoomed()
    panel = picture(one, made.log_of(one.arms[0]))
    logged, was = panel.strips[0].strip.lines
    assert (logged.label, was.label) == ("logged", "as was")
    assert (logged.steps[0], logged.steps[-1]) == (136, 160)
    assert (panel.first, panel.last) == (136, 160)
    np.testing.assert_array_equal(logged.values[-20:], was.values)


def test_no_difference_no_strip_of_it() -> None:
    one = made.zoomed()
    log = made.log_of(one.arms[0])
    assert "loss, retrained over logged, relative" not in names(picture(one, log))


def test_a_difference_is_drawn_relative_to_the_log() -> None:
    one = made.zoomed()
    log = made.log_of(one.arms[0])
    other = replace(one.arms[0], loss=tuple(value * 1.002 for value in one.arms[0].loss))
    panel = picture(replace(one, arms=(other,)), log)
    (strip,) = [each for each in panel.strips if each.strip.label.startswith("loss, retrained")]
    np.testing.assert_allclose(strip.strip.lines[0].values, 0.002, rtol=1e-9)


def test_s_has_its_edge_and_the_step_it_is_reached_at() -> None:
    one = made.zoomed(arms=(made.arm("as was", 140, 160, every=1, top=1.3, peak=(152, 6.28)),))
    crossed = next(
        step
        for step, value in zip(one.arms[0].stability_steps, one.arms[0].stability_ratio, strict=True)
        if value >= 1
    )
    panel = picture(one, None)
    assert f"S above 1 at {crossed}" in [mark.label for mark in panel.marks]
    (strip,) = [each for each in panel.strips if each.strip.label.startswith("S ")]
    assert [level.value for level in strip.strip.levels] == [1.0]
    assert f"S is above 1 from {crossed}" in panel.title


def alarm(known_at: int) -> Alarm:
    return Alarm(
        known_at, known_at, "hessian.stability_ratio", "", 0.9, 1.0, "forecast", "warning", "S grows"
    )


def test_the_first_alarm_is_drawn_in_place_of_the_crossing() -> None:
    one = made.zoomed(alarms=(alarm(143), alarm(149)))
    panel = picture(one, None)
    assert panel is not None
    dashed = [(mark.step, mark.label) for mark in panel.marks if mark.dash == "dashed"]
    assert dashed == [(143, "alarm known at 143")]
    assert "alarm known at 143" in str(svg(panel))
    told = {fact["label"]: fact["value"] for fact in facts(one)}
    assert told["first alarm"] == "at 143, 8 steps before the spike"
    told = {fact["label"]: fact["value"] for fact in facts(made.zoomed())}
    crossed = next(
        s for s, v in zip(one.arms[0].stability_steps, one.arms[0].stability_ratio, strict=True) if v >= 1
    )
    assert told["S above 1"] == f"at {crossed}, {151 - crossed} steps before the spike"
    calm = replace(one.arms[0], stability_ratio=(0.5,) * len(one.arms[0].stability_steps))
    told = {fact["label"]: fact["value"] for fact in facts(made.zoomed(arms=(calm,)))}
    assert told["first alarm"] == "none, and S stays below 1"


def test_alarms_stand_in_the_record() -> None:
    document = made.zoomed(alarms=(alarm(143),)).to_json()
    assert [one["known_at"] for one in document["alarms"]] == [143]


def test_s_over_decades_is_drawn_on_a_log_axis() -> None:
    panel = picture(made.whatif(), None)
    (strip,) = [each for each in panel.strips if each.strip.label.startswith("S ")]
    assert strip.strip.scale == "log"


def test_a_step_without_a_batch_breaks_the_line() -> None:
    one = made.whatif()
    skipping = replace(
        one.arms[1],
        loss=tuple(
            None if step == 150 else value
            for step, value in zip(one.arms[1].steps, one.arms[1].loss, strict=True)
        ),
    )
    panel = picture(replace(one, arms=(one.arms[0], skipping)), None)
    line = next(line for line in panel.strips[0].strip.lines if line.label.startswith("1 "))
    assert 150 not in line.steps
    assert line.reach == 1.5
    assert not panel.strips[0].ribbons


def test_not_finite_losses_are_ribbons_of_their_arm_one_row_each() -> None:
    panel = picture(made.many(), None)
    ribbons = panel.strips[0].ribbons
    assert [(ribbon.row, ribbon.window.label) for ribbon in ribbons] == [
        (0, "3 lr-scale=0.15:30: NaN"),
        (1, "7 lr-scale=0.35:70: ∞"),
    ]
    assert ribbons[0].window.first == 159.5
    assert all(math.isfinite(peak.value) for peak in panel.strips[0].peaks)


def test_spikes_of_every_arm_are_marked_in_its_colour() -> None:
    panel = picture(made.whatif(), None)
    assert {(peak.step, peak.value, peak.role) for peak in panel.strips[0].peaks} == {
        (152, 6.28, "was"), (153, 2.69, "arm1"), (152, 6.11, "arm2"),
    }  # fmt: skip
    assert str(svg(panel)).count('class="fill peak') == 4  # three peaks and the key


def test_the_twins_band_is_drawn_where_they_are_finite() -> None:
    one = made.whatif()
    assert one.twins is not None
    high = tuple(
        math.nan if step > 170 else value for step, value in zip(one.twins.steps, one.twins.high, strict=True)
    )
    panel = picture(replace(one, twins=replace(one.twins, high=high)), None)
    drawn = str(svg(panel))
    outline = re.search(r'<path d="M([^"]+)" class="band"', drawn)
    assert outline is not None
    start, moves = outline[1].split("l")
    across = float(start.split()[0]) + np.cumsum([0.0, *map(float, moves.split()[::2])])
    share = (across - LEFT) / (WIDTH - NAMES - LEFT)
    steps = panel.first + share * (panel.last - panel.first)
    assert (round(steps.min()), round(steps.max())) == (141, 170)
    assert "range of the twins" in drawn


@pytest.mark.parametrize("value", [1e30, 1e-30, -3.0, 0.0])
def test_any_size_of_loss_is_drawn_inside_the_picture(value: float) -> None:
    one = made.whatif()
    odd = replace(one.arms[1], loss=(value, *one.arms[1].loss[1:]))
    drawn = str(svg(picture(replace(one, arms=(one.arms[0], odd)), None)))
    assert "nan" not in drawn.lower().replace("nan</text>", "")
    assert "inf" not in drawn
