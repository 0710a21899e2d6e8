"""Faults on the page and at the terminal: every one with its word, and nothing from a file does more than show."""

from __future__ import annotations

from dataclasses import replace

from hnf_offline.findings import Fault
from hnf_offline.report.faults import check_summary, faults_counted, faults_table, nav_mark
from hnf_offline.report.page import write_report

from . import made

DANGER = Fault(
    "identical-weights", "danger", 336, "step-336", "steps 300 and 336 hold the same weights", "copy it again"
)
HOSTILE = Fault(
    "damaged", "warning", None, "<b>\x1b[31m", "<script>alert(1)</script>", "\x1b[2Jremove \u202eit"
)
REMARK = Fault("spacing", "info", None, "", "checkpoints are 36 steps apart", "nothing")


def test_the_table_says_severity_in_words_and_fits_the_width():
    text = faults_table([DANGER, HOSTILE, REMARK], width=60)
    assert max(map(len, text.splitlines())) <= 60
    for word in ("✗ danger", "▲ warning", "· info", "step 336", "whole run", "→ copy it again"):
        assert word in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_without_unicode_the_marks_are_ascii():
    text = faults_table([DANGER, REMARK], unicode=False)
    assert text.isascii()
    assert text.startswith("x danger")
    assert "- info" in text


def test_faults_are_counted_by_severity():
    assert faults_counted([DANGER, DANGER, HOSTILE, REMARK]) == "2 dangers, 1 warning, 1 remark"
    assert faults_counted([]) == "no fault"


def test_the_summary_never_calls_sound_what_it_found_wrong():
    checks = [("log", "10 rows", ""), ("spacing", "", "fewer than three checkpoints")]
    assert check_summary([], checks, 2) == (
        "1 check on 2 checkpoints: sound in what was checked; not checked: spacing (fewer than three checkpoints)"
    )
    assert "sound" in check_summary([REMARK], checks, 2)
    assert "sound" not in check_summary([DANGER], checks, 2)


def test_the_mark_of_the_section_is_that_of_the_worst_fault():
    assert nav_mark([DANGER, HOSTILE], ["log"]) == "Series ✗ 1"
    assert nav_mark([HOSTILE], ["log"]) == "Series ▲ 1"
    assert nav_mark([REMARK], ["log"]) == "Series ✓"
    assert nav_mark([], None) == "Series"


def test_the_page_lists_faults_escaped(tmp_path):
    run = made.healthy_run()
    findings = replace(
        run.findings, faults=(DANGER, HOSTILE), run={**run.findings.run, "checked": ["damaged", "log"]}
    )
    page = write_report(findings, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")
    assert "steps 300 and 336 hold the same weights" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert(1)" not in page
    assert "\x1b" not in page
    assert "the log alone: damaged, log." in page


def test_a_page_of_a_series_that_was_not_checked_does_not_call_it_sound(tmp_path):
    run = made.healthy_run()
    page = write_report(run.findings, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")
    assert "The series was not checked" in page
    assert "Series ✓" not in page


def test_the_first_screen_says_that_the_series_is_not_sound(tmp_path):
    """A verdict on a wrong series is worth nothing, so it stands beside the verdict."""
    run = made.spike_run()

    def page(*faults):
        told = replace(run.findings, faults=faults)
        return write_report(told, run.log, run.profile, tmp_path / "out").read_text(encoding="utf-8")

    first = page(DANGER, HOSTILE).split('id="spikes"')[0]
    assert "Series not sound:" in first and "steps 300 and 336 hold the same weights" in first
    assert "(and 1 more)" in first and first.index("Series not sound:") < first.index("<figure")
    assert "Series not sound:" not in page(REMARK)
    first = page(HOSTILE).split('id="spikes"')[0]
    assert "<script>alert" not in first and "&lt;script&gt;alert(1)" in first
