"""The verbs as a library: as a notebook would use them."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import hnf_offline as hnf
from hnf_offline.errors import UsageError

SPIKY = Path(__file__).parents[1] / "sample_runs" / "spiky"
SETTINGS = hnf.ProfileSettings(tier="gradient", first_step=850, last_step=920, device="cpu")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return hnf.report(SPIKY, SETTINGS, out=tmp_path_factory.mktemp("library") / "out")


def test_a_profile_is_a_table_and_measured_once(tmp_path):
    run = hnf.open_run(SPIKY)
    profile = hnf.profile(run, SETTINGS, out=tmp_path / "out")
    assert profile.run.name == "spiky" and profile.table.height > 100
    norms = profile.series("gradient.norm", layer="")
    assert norms.columns == ["step", "value", "low", "high", "certified"]
    assert norms["step"].is_sorted() and norms["step"].is_between(850, 920).all()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("step-*.parquet")}
    assert hnf.profile(run, SETTINGS, out=tmp_path / "out").table.equals(profile.table)
    assert made == {path: path.stat().st_mtime_ns for path in made}
    with pytest.raises(KeyError, match="measured nowhere in this run"):
        profile.series("hessian.trace")
    assert "spiky" in repr(profile) and "<table" in profile._repr_html_()


def test_a_report_has_its_findings_as_tables(report):
    assert report.spikes["onset"].to_list() == [one.onset for one in report.findings.spikes]
    assert report.spikes.height > 0
    assert report.alarms.height == len(report.findings.alarms)
    assert set(report.relations.columns) > {"quantity", "recall", "chance_recall"}
    assert report.verdict.startswith(report.findings.verdict["word"])
    assert report.findings.verdict["word"] in repr(report) and len(repr(report).splitlines()) <= 14


def test_figures_are_returned_and_not_shown(report, monkeypatch):
    monkeypatch.setattr(pyplot, "show", lambda *_, **__: pytest.fail("a figure was shown"))
    figures = report.figures()
    assert figures and all(isinstance(one, Figure) for one in figures.values())
    assert pyplot.get_fignums() == [], "nothing is left in pyplot's hands"


def test_a_report_is_written_only_when_it_is_saved_and_then_is_that_of_the_command_line(report, tmp_path):
    assert not (report.folder / "index.html").exists()
    page = report.save(tmp_path / "saved")
    assert page == tmp_path / "saved" / "index.html"
    assert json.loads((tmp_path / "saved" / "findings.json").read_text())["spikes"]
    assert {path.stem for path in (tmp_path / "saved" / "figures").iterdir()} == set(report.figures())
    with pytest.raises(UsageError, match="never written inside a run"):
        report.save(SPIKY / "out")


def test_what_is_saved_says_what_the_command_line_says(report, tmp_path, capsys):
    from hnf_offline.cli import main

    typed = ["--tier", "gradient", "--steps", "850:920", "--device", "cpu", "--zoom", "off", "--quiet"]
    assert main(["report", str(SPIKY), *typed, "--out", str(tmp_path / "typed")]) == 0
    saved = report.save(tmp_path / "saved").parent
    one, other = (
        json.loads((folder / "findings.json").read_text()) for folder in (tmp_path / "typed", saved)
    )
    for document in (one, other):
        document.pop("made")
    assert one == other
    capsys.readouterr()


def test_in_a_notebook_the_page_stands_in_a_frame_of_its_own(report):
    frame = report._repr_html_()
    inside = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    assert inside.startswith("<!doctype html>") and report.findings.verdict["sentence"][:40] in inside
    assert "<script" not in frame.partition("srcdoc=")[0], "nothing of it runs outside the frame"
    assert "sandbox=" in frame and 'href="figures' not in inside, "what was not saved is not linked"


def test_a_path_is_enough_and_packages_stay_packages():
    from hnf_offline.profile import profile_run
    from hnf_offline.report import write_report

    assert callable(hnf.profile) and callable(hnf.report)
    assert hnf.profile.profile_run is profile_run and hnf.report.write_report is write_report
    assert isinstance(hnf.open_run(SPIKY).checkpoints, tuple)


def test_importing_the_library_loads_nothing_heavy():
    code = (
        "import sys, hnf_offline as hnf; hnf.profile; hnf.report; "
        "print([name for name in ('torch', 'polars', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tables_without_rows_are_empty_frames(report):
    from dataclasses import replace

    empty = replace(report, findings=replace(report.findings, spikes=()))
    assert isinstance(empty.spikes, pl.DataFrame) and empty.spikes.height == 0
