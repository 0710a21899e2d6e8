"""The story of a spike at the terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hnf_offline.errors import UsageError
from hnf_offline.report import explained

from . import made


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_a_spike_is_told_from_beginning_to_end_at_any_width(width: int) -> None:
    findings = made.spike_run().findings
    text = explained(findings, 1, width=width)
    assert all(len(line) <= width for line in text.splitlines()) and "\x1b" not in text
    flat = " ".join(text.split())
    story = next(one for one in findings.stories if one.spike == 1)
    assert story.sentence in flat and f"lead: {story.lead_text}" in flat
    places = [flat.index(sentence) for _, sentence in story.timeline]
    assert places == sorted(places), "in order of time"
    for advice in findings.advice:
        assert (advice.action in flat) == (advice.spike in {None, 1})


def test_what_belongs_to_another_spike_is_left_out() -> None:
    findings = made.spike_run().findings
    other = " ".join(explained(findings, 2).split())
    assert next(one for one in findings.stories if one.spike == 2).sentence in other
    assert next(one for one in findings.stories if one.spike == 1).sentence not in other
    alone = replace(findings, stories=())
    assert "spike 1" in explained(alone, 1), "a spike without a story still has its figures"


def test_a_spike_that_is_not_there_is_a_usage_error_that_says_which_are() -> None:
    findings = made.spike_run().findings
    with pytest.raises(UsageError, match="--explain 7: no such spike"):
        explained(findings, 7)
    with pytest.raises(UsageError) as none:
        explained(made.healthy_run().findings, 1)
    assert none.value.remedy == "no loss spike was found in this run"


def test_names_from_files_move_no_cursor_and_colour_is_asked_for() -> None:
    findings = made.spike_run().findings
    evil = replace(findings, run={**findings.run, "name": "a\x1b[2Jb"})
    assert "\x1b" not in explained(evil, 1)
    assert explained(findings, 1, color=True).startswith("\x1b[1m")
    assert explained(findings, 1, unicode=False).isascii()
