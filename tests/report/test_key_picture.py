from dataclasses import replace
from xml.etree import ElementTree

import numpy as np

from hnf_offline.findings import Alarm
from hnf_offline.report.key_picture import key_picture
from hnf_offline.report.stories import story_panels
from hnf_offline.report.svg import WIDTH, chart
from hnf_offline.table import table

from . import made


def test_spikes_are_solid_where_announced_and_dashed_where_not():
    run = made.spike_run()
    picture = key_picture(run.findings, run.log, run.profile)
    assert [(mark.step, mark.dash) for mark in picture.marks] == [(151, "solid"), (220, "dashed")]
    assert "no alarm before" in picture.marks[1].label
    assert "an alarm came before 1 of 2" in picture.title


def test_the_lead_window_runs_from_known_at_to_the_onset():
    run = made.spike_run()
    picture = key_picture(run.findings, run.log, run.profile)
    assert [(window.first, window.last, window.role) for window in picture.windows] == [(140, 151, "lead")]


def test_the_loss_is_every_logged_step_unsmoothed_and_uncut():
    run = made.spike_run()
    loss = key_picture(run.findings, run.log, run.profile).strips[0]
    assert loss.cap is None
    assert len(loss.lines[0].steps) == 300
    assert loss.lines[0].values.max() == 10.86


def test_s_stands_below_with_the_edge_and_is_not_joined_across_missing_checkpoints():
    run = made.spike_run()
    strip = key_picture(run.findings, run.log, run.profile).strips[1]
    assert strip.levels[0].value == 1.0
    line = strip.lines[0]
    assert line.reach == 15.0
    assert list(line.steps[line.hollow]) == [170.0]


def test_alarms_stand_where_they_could_be_known_and_information_is_left_out():
    run = made.spike_run()
    rows = {row.label: row.steps for row in key_picture(run.findings, run.log, run.profile).events}
    assert rows == {"edge": (150,), "forecast": (140,), "headroom": (260,)}


def test_resumes_are_dotted():
    run = made.spike_run()
    findings = replace(run.findings, run={**run.findings.run, "resume_steps": [100]})
    marks = key_picture(findings, run.log, run.profile).marks
    assert [(mark.step, mark.dash) for mark in marks if mark.role == "resume"] == [(100, "dotted")]


def test_a_loss_that_is_not_finite_is_a_window_labelled_nan():
    run = made.nan_run()
    strip = key_picture(run.findings, run.log, run.profile).strips[0]
    [window] = strip.windows
    assert (window.label, window.first, window.last) == ("NaN", 249.5, 300.5)


def test_log_alone_shows_the_gradient_norm_and_nothing_at_all_shows_nothing():
    run = made.log_only_run()
    assert [strip.label for strip in key_picture(run.findings, run.log, run.profile).strips] == [
        "loss",
        "logged gradient norm",
    ]
    assert key_picture(run.findings, None, table()) is None


def test_a_story_shows_four_strips_around_its_spike_and_one_story_is_the_worst():
    run = made.spike_run()
    first, second = story_panels(run.findings, run.log, run.profile)
    assert first.worst and not second.worst  # never recovered is worse than higher
    assert [strip.label for strip in first.chart.strips] == [
        "loss",
        "S (stability ratio)",
        "gradient norm",
        "learning rate",
    ]
    assert first.chart.first <= 151 - 3 * 11
    assert 152 < first.chart.last <= 300
    assert all(
        np.all(line.steps >= first.chart.first) for strip in first.chart.strips for line in strip.lines
    )
    assert second.timeline == ((220, "loss 10.86"), (221, "back in its band"))
    assert dict(second.facts)["moved first"] == "nothing measured"


def test_a_forecast_is_drawn_as_it_was_made_up_to_the_crossing_it_projected():
    run = made.spike_run()
    alarms = tuple(
        Alarm(
            step,
            step,
            "hessian.stability_ratio",
            "",
            value,
            1.0,
            "forecast",
            "warning",
            "",
            projected_step=end,
        )
        for step, value, end in ((100, 0.8, 118.0), (130, 0.7, 155.0))
    )
    picture = key_picture(replace(run.findings, alarms=alarms), run.log, run.profile)
    line = next(line for strip in picture.strips for line in strip.lines if line.dash == "dotted")
    drawn = list(zip(line.steps, line.values, strict=True))
    assert (
        drawn[0] == (100, 0.8)
        and drawn[1] == (118, 1.0)
        and drawn[3] == (130, 0.7)
        and drawn[4] == (155, 1.0)
    )
    assert np.isnan(drawn[2][1]) and np.isnan(drawn[5][1]), "the line breaks between forecasts"
    without = key_picture(replace(run.findings, alarms=()), run.log, run.profile)
    assert all(line.dash != "dotted" for strip in without.strips for line in strip.lines)


def test_a_legend_with_many_entries_takes_another_line_instead_of_leaving_the_picture():
    run = made.spike_run()
    panel = key_picture(run.findings, run.log, run.profile)

    def drawn(marks):
        root = ElementTree.fromstring(str(chart(replace(panel, marks=marks))))
        height = float(root.attrib["viewBox"].split()[3])
        words = [
            one for one in root.iter() if one.tag.endswith("text") and float(one.attrib["y"]) > height - 60
        ]
        legend = [one for one in words if one.attrib.get("class") == "small" and len(one.text or "") > 6]
        for one in legend:
            assert float(one.attrib["x"]) + 5 * len(one.text) < WIDTH, one.text
            assert float(one.attrib["y"]) < height
        return height, {one.text for one in legend}

    low, few = drawn(panel.marks[:1])
    kinds = [
        ("spike", "solid"),
        ("spike", "dashed"),
        ("resume", "dotted"),
        ("parting", "solid"),
        ("parting", "dashed"),
    ]
    many = [replace(panel.marks[0], role=role, dash=dash, label="") for role, dash in kinds]
    high, all_of_them = drawn(many)
    assert high > low
    assert few < all_of_them and {"another quantity parts first", "not certified"} <= all_of_them


def test_the_words_at_the_edge_lie_over_the_lines() -> None:
    run = made.spike_run()
    drawn = chart(key_picture(run.findings, run.log, run.profile))
    assert drawn.rindex("1 = edge of stability") > drawn.rindex('class="line ')
