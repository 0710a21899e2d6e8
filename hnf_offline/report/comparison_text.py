"""Two runs at the terminal: the verdict first, at most thirteen lines."""

from __future__ import annotations

import math
import textwrap

from hnf_offline.comparison import Comparison, Separation
from hnf_offline.report import words
from hnf_offline.report.series import symbol
from hnf_offline.report.text import ascii_only, clean, number, plural, shorten

MOST_LINES = 13


def comparison_summary(
    comparison: Comparison, *, width: int = 80, color: bool = False, unicode: bool = True
) -> str:
    """Sum a comparison up: verdict, facts, what parts first, which settings differ, what is incomparable.

    Returns:
        At most thirteen lines of at most `width` columns.
    """
    width = max(width, 40)
    word = comparison.verdict.get("word", "Cannot say")
    mark = words.MARKS.get(word, "?") if unicode else words.ASCII_MARKS.get(word, "?")
    names = " vs ".join(
        f"{label} {clean(run.get('name', label))}"
        for label, run in (("A", comparison.a), ("B", comparison.b))
    )
    verdict = _lines(f"{mark} {word}: {clean(comparison.verdict.get('sentence', ''))}", width, 3)
    lines = [_lines(names, width, 1)[0], *(f"\x1b[1m{line}\x1b[0m" if color else line for line in verdict)]
    for fact in comparison.facts[:4]:
        lines += _lines(f"{clean(fact.get('label', ''))}: {clean(fact.get('value', ''))}", width, 1)
    tested = loss_test(comparison)
    lines += _lines(tested, width, 2) if tested else []
    told = barrier_line(comparison)
    lines += _lines(told, width, 2) if told else []
    parted = [one for one in comparison.separations if one.step is not None][:3]
    if parted:
        lines += _lines("part: " + "; ".join(parting(one) for one in parted), width, 1)
    if comparison.configuration:
        told = ", ".join(
            f"{clean(one.key)} {spelled(one.a)} | {spelled(one.b)}" for one in comparison.configuration[:4]
        )
        more = len(comparison.configuration) - 4
        lines += _lines(f"settings: {told}" + (f" and {more} more" if more > 0 else ""), width, 1)
    lines.append(
        f"{plural(len(comparison.incomparable), 'thing')} could not be compared; the page lists them"
        if comparison.incomparable
        else "everything measured in both was compared"
    )
    text = "\n".join(lines[:MOST_LINES])
    return text if unicode else ascii_only(text)


def loss_test(comparison: Comparison) -> str:
    """Tell the paired test of the two losses.

    Returns:
        A sentence, "" where there were too few common rows.
    """
    test = comparison.loss_test
    if test is None:
        return ""
    return (
        f"loss A - B over steps {test['first']:,} to {test['last']:,}: {test['difference']:+.2g} "
        f"[{test['low']:+.2g} to {test['high']:+.2g}], p {number(test['p'], 2)} (paired t, "
        f"{number(test['effective_rows'])} independent of {test['rows']:,} rows; one run of each)"
    )


def barrier_line(comparison: Comparison) -> str:
    """Tell the barrier at the last step that has one.

    Returns:
        A sentence, "" where none was measured.
    """
    if not comparison.barriers:
        return ""
    last = comparison.barriers[-1]
    ends = f"between losses {number(last.loss_a)} and {number(last.loss_b)}"
    doubt = "" if last.certified else " (running statistics on the way: not certified)"
    if last.value <= last.high - last.value:  # no more than rounding
        return f"no barrier on the straight line from A to B at {last.step:,}, {ends}{doubt}"
    if math.isinf(last.value):
        return f"the loss is not finite on the straight line from A to B at {last.step:,}{doubt}"
    return (
        f"barrier of {number(last.value)} nats on the straight line from A to B at {last.step:,}, {last.place:.0%} of "
        f"the way, {ends}{doubt}"
    )


def parting(one: Separation) -> str:
    """Tell one separation.

    Returns:
        "S (stability ratio) in layers.0 at 150 (0.7 | 1.9)".
    """
    where = f" in {shorten(one.layer, 30)}" if one.layer else ""
    return f"{symbol(one.quantity)}{where} at {one.step:,} ({number(one.a)} | {number(one.b)})"


def spelled(value: object) -> str:
    """Spell a setting; None where a run does not state it.

    Returns:
        Text.
    """
    if value is None:
        return "not stated"
    return f"{value:.6g}" if isinstance(value, float) else clean(value)


def _lines(text: str, width: int, most: int) -> list[str]:
    lines = textwrap.wrap(text, width, subsequent_indent="  ") or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1][: width - 1]}…"]
    return lines
