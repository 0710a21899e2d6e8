"""Figures and tables of the study's page, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.study.scoring import Interval, Pooled


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Spell a table.

    Returns:
        Markdown.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(one: Interval) -> str:
    """Spell a share or a ratio with its interval.

    Returns:
        "0.92 [0.80, 1.00]"; "-" where it is not known.
    """
    if one.value is None:
        return "-"
    return f"{one.value:.2f}" + ("" if one.low is None else f" [{one.low:.2f}, {one.high:.2f}]")


def rate(one: Interval) -> str:
    """Spell a count per 1000 steps with its interval.

    Returns:
        "0.2 [0.0, 0.5]"; "-" where it is not known.
    """
    if one.value is None:
        return "-"
    return f"{one.value:.1f}" + ("" if one.low is None else f" [{one.low:.1f}, {one.high:.1f}]")


def decimal(value: float | None) -> str:
    """Spell a share without an interval.

    Returns:
        "0.19"; "-" where it is not known.
    """
    return "-" if value is None else f"{value:.2f}"


def shares(one: Pooled) -> list[str]:
    """Spell recall and precision, each beside chance.

    Returns:
        Four cells.
    """
    return [
        figure(one.recall),
        decimal(one.chance_recall),
        figure(one.precision),
        decimal(one.chance_precision),
    ]


def leads(one: Pooled) -> str:
    """Spell the middle of a rule's leads and its quartiles.

    Returns:
        "18 (15 to 28), grid 8"; "-" without leads.
    """
    if not one.leads:
        return "-"
    low, middle, high = np.quantile(one.leads, [0.25, 0.5, 0.75])
    return f"{middle:.0f} ({low:.0f} to {high:.0f}), grid {one.resolution}"
