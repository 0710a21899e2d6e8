"""The report of a run with zoomed stretches: said in words, drawn as a line, and kept off the map."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hnf_offline.report import figures, svg, svg_evidence, write_report
from hnf_offline.report.evidence import raster
from hnf_offline.report.heat import heat_map
from hnf_offline.report.key_picture import key_picture
from hnf_offline.report.layer_map import layer_maps
from hnf_offline.report.stories import story_panels
from hnf_offline.report.terminal import summary
from hnf_offline.table import Row, table

from . import made

EXACT = {
    "start": 140, "stop": 151, "word": "exact", "because": "11 losses equal to 6e-7, weights at 150 equal",
    "loss_difference_max": 6e-7, "weight_difference_max": 0.0,
}  # fmt: skip
FAILED = {
    "start": 210, "stop": 220, "word": "not_reproducible", "because": "no batch of step 213 was kept",
    "loss_difference_max": None, "weight_difference_max": None,
}  # fmt: skip
TESTED = "tested: no spike, loss 2.18 instead of 3.19 at step 180"


@pytest.fixture(scope="module")
def run() -> made.Made:
    whole = made.spike_run()
    rows = []
    for step in range(141, 152):
        value = 0.4 + 0.1 * (step - 140)
        rows.append(Row(step, "", "model", -1, "hessian.stability_ratio", value, source="zoom"))
        rows.append(Row(step, made.GUILTY, "key", 3, "hessian.unstable_mass", 0.9, source="zoom"))
    advised = replace(whole.findings.advice[0], tested=TESTED, policy="lr-cap=0.0081")
    findings = replace(whole.findings, zooms=(EXACT, FAILED), advice=(advised,))
    return made.Made(findings, whole.log, pl.concat([whole.profile, table(rows)]))


def test_the_page_says_what_was_zoomed_how_well_and_why_not(run: made.Made, tmp_path: Path) -> None:
    page = write_report(run.findings, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")
    assert "Steps 140–151 retrained: exact (11 losses equal to 6e-7, weights at 150 equal)" in page
    assert "S is measured at every step there." in page
    assert "Steps 210–220 could not be reproduced: no batch of step 213 was kept." in page
    assert "not reproducible" in page
    assert "6.0e-07" in page
    document = json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8"))
    assert [zoom["word"] for zoom in document["zooms"]] == ["exact", "not_reproducible"]
    assert "Zoomed:" not in _plain_page(tmp_path)


def _plain_page(folder: Path) -> str:
    plain = made.spike_run()
    return write_report(plain.findings, plain.log, plain.profile, folder / "plain").read_text(
        encoding="utf-8"
    )


def test_a_retraining_that_is_only_close_is_not_called_the_run(run: made.Made, tmp_path: Path) -> None:
    close = {**EXACT, "word": "close", "because": "losses within 1e-3"}
    findings = replace(run.findings, zooms=(close,))
    page = write_report(findings, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")
    assert "that of a run close to this one" in page
    assert "S is measured at every step there" not in page


def test_what_testing_gave_stands_right_under_the_advice(run: made.Made, tmp_path: Path) -> None:
    page = write_report(run.findings, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")
    action = run.findings.advice[0].action
    after = page.rsplit(f"<b>{action}.</b>", 1)[1]
    assert after.startswith(f"<br><b>{TESTED[0].upper()}{TESTED[1:]}.</b>")
    assert "<code>lr-cap=0.0081</code>" in after
    lines = summary(run.findings, width=100).split("\n")
    at = next(place for place, line in enumerate(lines) if TESTED in line)
    assert action.lower() in " ".join(lines[:at]).lower()


def test_evidence_is_linked_only_where_it_was_written(run: made.Made, tmp_path: Path) -> None:
    evidence = "proof/spike-1/index.html"
    advised = replace(run.findings.advice[0], evidence=evidence)
    findings = replace(run.findings, advice=(advised,))
    out = tmp_path / "out"
    page = write_report(findings, run.log, run.profile, out).read_text(encoding="utf-8")
    assert evidence not in page
    assert evidence not in (out / "findings.json").read_text(encoding="utf-8")
    (out / evidence).parent.mkdir(parents=True)
    (out / evidence).write_text("a page", encoding="utf-8")
    page = write_report(findings, run.log, run.profile, out).read_text(encoding="utf-8")
    after = page.rsplit("Tested: no spike", 1)[1]
    assert after.index(f'<a href="{evidence}">') < after.index("</li>")
    assert (
        json.loads((out / "findings.json").read_text(encoding="utf-8"))["advice"][0]["evidence"] == evidence
    )


def test_many_exact_stretches_are_one_sentence_and_what_failed_its_own(
    run: made.Made, tmp_path: Path
) -> None:
    exact = [
        {**EXACT, "start": start, "stop": start + 9, "loss_difference_max": start * 1e-9}
        for start in (10, 30, 50)
    ]
    coarse = {**EXACT, "start": 70, "stop": 90, "word": "close", "because": "losses within 1e-3", "every": 5}
    skipped = {**FAILED, "start": 100, "stop": 190, "word": "not_zoomed", "because": "90 steps take too long"}
    findings = replace(run.findings, zooms=(*exact, coarse, skipped))
    page = write_report(findings, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("Zoomed:</b>") == 3
    assert (
        "3 stretches retrained, all exact (no loss differs from the log by more than 5.0e-08 relative)"
        in page
    )
    assert "S is measured at every step of 10–19, 30–39, 50–59." in page
    assert "S at one step in 5 there is that of a run close to this one" in page
    assert "Steps 100–190 were not retrained: 90 steps take too long." in page
    text = summary(findings, width=160)
    assert "zoomed: 3 stretches retrained, all exact" in text
    assert "zoomed: steps 70–90 close; steps 100–190 not zoomed" in text


def test_the_terminal_says_what_was_zoomed_and_keeps_every_fact(run: made.Made) -> None:
    lines = summary(run.findings, width=100).split("\n")
    text = "\n".join(lines)
    assert "zoomed: steps 140–151 retrained: exact" in text
    assert "zoomed: steps 210–220 not reproducible" in text
    assert len(lines) <= 11 + 6
    assert max(map(len, lines)) <= 100
    before = summary(made.spike_run().findings, width=100).split("\n")
    assert set(before) <= set(lines), "nothing that was told is pushed out"
    assert summary(run.findings, width=60, unicode=False).isascii()


def test_the_line_goes_through_every_step_with_markers_at_checkpoints_only(run: made.Made) -> None:
    chart = key_picture(run.findings, run.log, run.profile)
    assert chart is not None
    line = chart.strips[1].lines[0]
    assert {145.0, 149.0, 151.0} <= set(line.steps)
    assert line.marked is not None
    assert not {145.0, 149.0, 151.0} & set(line.steps[line.marked])
    assert 150.0 in set(line.steps[line.marked]), "the checkpoint's own value stays"
    assert line.values[line.steps == 150.0] != pytest.approx(1.4)
    assert line.reach == 15.0
    plain = key_picture(run.findings, run.log, made.spike_run().profile)
    assert plain is not None
    circles = "a3 3 0"
    assert str(svg.chart(chart)).count(circles) == str(svg.chart(plain)).count(circles)
    figures.chart(chart)
    panel = story_panels(run.findings, run.log, run.profile)[0]
    assert panel.chart is not None
    clipped = panel.chart.strips[1].lines[0]
    assert clipped.marked is not None
    assert len(clipped.marked) == len(clipped.steps) > clipped.marked.sum()


def test_the_maps_are_those_of_the_checkpoints(run: made.Made) -> None:
    plain = made.spike_run()
    for fine, coarse in zip(
        layer_maps(run.findings, run.log, run.profile),
        layer_maps(plain.findings, plain.log, plain.profile),
        strict=True,
    ):
        assert fine.gap == coarse.gap == 10
        assert np.array_equal(fine.steps, coarse.steps)
        assert np.array_equal(fine.values, coarse.values, equal_nan=True)
        assert fine.title == coarse.title
    assert heat_map(run.profile) == heat_map(plain.profile)


def test_leads_before_a_zoomed_onset_are_not_hatched_as_unknown(run: made.Made) -> None:
    panel = raster(run.findings)
    assert panel is not None
    assert [row.resolution for row in panel.rows] == [None, 10.0]
    assert panel.unresolved() == [(1, 2)]
    assert str(svg_evidence.raster(panel)).count("window gap") >= 1
    figures.raster(panel)
    every = raster(replace(run.findings, zooms=(EXACT, {**FAILED, "word": "exact"})))
    assert every is not None
    assert every.resolution is None
