"""A retraining at the terminal, and the catalogue of policies."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from hnf_offline.report import policies_table, policy_explained, retraining_summary

from . import retrainings as made


@dataclass(frozen=True)
class Entry:
    name: str = "lr-cap"
    value: str = "RATE"
    summary: str = "The learning rate never exceeds RATE."
    formula: str = "eta <- min(eta, RATE)"
    reference: str = "Cohen et al. 2021, section 3"
    cost: str = "nothing"
    example: str = "lr-cap=0.0084"


def test_a_zoom_is_summed_up_in_a_dozen_lines() -> None:
    told = retraining_summary(made.zoomed(), width=100)
    lines = told.split("\n")
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 100
    assert lines[1].startswith("● Exact: 20 losses equal the log to 6e-7 relative")
    for planted in ("6.1e-07 relative", "1.1e-07 at 160", "found by trying: clipping at 1.0", "14.2 at 152"):
        assert planted in told, planted


def test_a_what_if_is_a_table_of_arms_under_the_verdict() -> None:
    one = made.whatif()
    told = retraining_summary(one, width=140)
    lines = told.split("\n")
    head = next(place for place, line in enumerate(lines) if line.startswith("policy"))
    assert lines[head].split()[:7] == ["policy", "spikes", "peak", "at", "final", "S", "max"]
    rows = lines[head + 1 : head + 5]
    assert [row.split()[0] for row in rows] == ["as", "lr-cap=0.0084", "lr-cap=0.015", "clip=1.0"]
    column = lines[head].index("peak at")
    assert [row[column : column + 11].strip() for row in rows][2:] == ["2.69 at 153", "6.11 at 152"]
    assert [row.split()[1] for row in rows[1:]] == ["none", "at", "at"]
    final, was = one.arms[1].loss[-1], one.arms[0].loss[-1]
    assert final is not None and was is not None
    assert f"{final - was:.2f}, outside the twins' band" in rows[1]
    assert rows[3].endswith("within the twins' band")
    assert rows[0].endswith("-")
    assert "largest stable learning rate between 0.0112 and 0.0139; lr/S 0.0084 [0.0079–0.0091]" in told
    assert "a difference doubles in 5.6 steps" in told


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for one in (made.zoomed(), made.many()):
        lines = retraining_summary(one, width=width).split("\n")
        assert max(map(len, lines)) <= width


def test_colour_only_where_it_is_wanted_and_ascii_where_needed() -> None:
    assert "\x1b" not in retraining_summary(made.many())
    assert "\x1b[1m" in retraining_summary(made.many(), color=True)
    assert retraining_summary(made.many(), unicode=False).isascii()
    assert retraining_summary(made.zoomed(), unicode=False).split("\n")[1].startswith("o Exact")


def test_nothing_of_a_file_is_obeyed() -> None:
    evil = "\x1b[2J\x07evil\u202e\nline"
    arms = (made.as_was(), replace(made.whatif().arms[1], policy=evil, outcome=evil))
    one = made.whatif(arms=arms, notes=(evil,), run={"name": evil},
                      reproduction=replace(made.EXACT, because=evil, assumed=(evil,)))  # fmt: skip
    told = retraining_summary(one)
    assert "evil" in told
    assert not {"\x1b", "\x07", "\u202e"} & set(told)


def test_no_number_is_told_as_such() -> None:
    told = retraining_summary(made.many(), width=160)
    assert "NaN at 160" in told
    assert "∞ at 170" in told


def test_an_arm_without_a_loss_and_a_rate_that_cannot_be_told() -> None:
    twins = made.whatif().twins
    assert twins is not None
    silent = replace(made.as_was(), loss=(None,) * 40, spikes=(), stability_steps=(), stability_ratio=())
    one = made.whatif(arms=(silent,), twins=replace(twins, lyapunov_rate=math.nan))
    row = next(line for line in retraining_summary(one).split("\n") if line.startswith("as was"))
    assert row.split() == ["as", "was", "none", "-", "-", "-", "-"]
    assert "no arm was trained" in retraining_summary(made.whatif(arms=()))


def test_policies_are_listed_with_their_whole_summary_and_a_cost_where_there_is_one() -> None:
    dear = Entry("lr-ratchet", "[FACTOR[,APART[,FLOOR[,EVERY]]]]", "Multiply the rate while S stays above 1.",
                 cost="one Hessian-vector product")  # fmt: skip
    told = policies_table([Entry(), dear, Entry("reset", "", "Forget the moments.")], 80)
    lines = told.split("\n")
    assert lines[0].split("  ")[0] == "lr-cap=RATE"
    assert "The learning rate never exceeds RATE." in lines[0]
    assert "lr-ratchet=[FACTOR[,APART[,FLOOR[,EVERY]]]]" in lines
    assert told.count("cost a step") == 1
    assert "one Hessian-vector product" in told
    assert lines[-1].startswith("reset ")
    assert max(map(len, lines)) <= 80
    assert policies_table([], 80) == "no policy"


@pytest.mark.parametrize("width", [40, 100])
def test_a_policy_is_explained_in_full(width: int) -> None:
    entry = Entry()
    told = " ".join(policy_explained(entry, width=width).split())
    for part in (entry.summary, entry.formula, entry.reference, entry.cost, "--policy lr-cap=0.0084"):
        assert " ".join(part.split()) in told, part
    assert "\x1b" not in told
