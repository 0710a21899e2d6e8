"""A retraining at the terminal: the verdict first, then a line an arm; and the catalogue of policies."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Protocol

from hnf_offline.report import retraining_words as spelled
from hnf_offline.report.text import ascii_only, clean, number
from hnf_offline.retraining import Retraining

MOST_LINES = 11
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class Policy(Protocol):
    """What the catalogue says of one policy."""

    @property
    def name(self) -> str:
        """As typed."""

    @property
    def value(self) -> str:
        """What follows the "=", in capitals."""

    @property
    def summary(self) -> str:
        """One sentence."""

    @property
    def formula(self) -> str:
        """What is changed."""

    @property
    def reference(self) -> str:
        """Where it comes from."""

    @property
    def cost(self) -> str:
        """What it costs a step."""

    @property
    def example(self) -> str:
        """One spelling that works."""


def retraining_summary(
    retraining: Retraining, *, width: int = 80, color: bool = False, unicode: bool = True
) -> str:
    """Sum a retraining up: whether it is the run, what was assumed, the arms, chance, the largest stable rate.

    Returns:
        At most eleven lines for a zoom, a line more an arm for a what-if; none wider than `width` columns.
    """
    width = max(width, 40)
    word, mark, plain_mark, _ = spelled.verdict(retraining.reproduction)
    name = clean(retraining.run.get("name", "run"))
    lines = [_cut(f"{name}   {clean(spelled.subtitle(retraining))}", width)]
    said = f"{mark if unicode else plain_mark} {word}: {clean(spelled.because(retraining.reproduction))}"
    lines += [f"{_BOLD}{line}{_PLAIN}" if color else line for line in _wrap(said, width, 3)]
    for label, clauses in (
        ("assumed", retraining.reproduction.assumed),
        ("found by trying", retraining.reproduction.found),
    ):
        if clauses:
            lines += _wrap(f"{label}: {'; '.join(clean(one) for one in clauses)}", width, 1)
    tail = _largest(retraining, width) + _twins(retraining, width)
    tail += [line for note in retraining.notes[:2] for line in _wrap(clean(note), width, 1)]
    if retraining.kind == "zoom":
        lines += [_cut(f"{one['label']}: {one['value']}", width) for one in spelled.facts(retraining)]
        lines = [*lines, *tail][:MOST_LINES]
    else:
        lines += [*_arms(retraining, width), *tail]
    text = "\n".join(line.rstrip() for line in lines)
    return text if unicode else ascii_only(text)


def _arms(retraining: Retraining, width: int) -> list[str]:
    if not retraining.arms:
        return ["no arm was trained"]
    head = ("policy", "spikes", "peak at", "final", "S max", "change against as was")
    rows = [head]
    for arm in retraining.arms:
        row = spelled.arm_row(arm, retraining.arms[0])
        change = f"{row.change}, {row.certainty}" if row.certainty else row.change
        final = row.final.partition(" at ")[0]
        rows.append((_cut(row.policy, 28), row.spikes, row.highest, final, row.stability, change))
    sizes = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        _cut("  ".join(f"{cell:<{size}}" for cell, size in zip(row, sizes, strict=True)).rstrip(), width)
        for row in rows
    ]


def _largest(retraining: Retraining, width: int) -> list[str]:
    found = retraining.largest_stable
    if found is None:
        return []
    said = (
        f"largest stable learning rate {spelled.stable_interval(found)}; lr/S {spelled.from_curvature(found)}"
    )
    return _wrap(f"{said}; {len(found.tried)} replays of {number(found.steps)} steps", width, 2)


def _twins(retraining: Retraining, width: int) -> list[str]:
    if retraining.twins is None:
        return []
    twins = retraining.twins
    rate = spelled.lyapunov(twins)
    told = [spelled.chance(twins), spelled.band(twins) if twins.low else "", rate]
    return _wrap(f"chance alone: {'; '.join(one for one in told if one)}", width, 2)


def policies_table(
    entries: Sequence[Policy], width: int = 100, *, color: bool = False, unicode: bool = True
) -> str:
    """List policies: how each is spelled, what it does, and what it costs a step where it costs anything.

    Returns:
        A table of two columns; a spelling too long for its column has a line of its own.
    """
    del color  # nothing here is worth a colour
    if not entries:
        return "no policy"
    names = [spelling(entry) for entry in entries]
    size = min(max(len(name) for name in names), max(16, width // 4))
    room = max(24, width - size - 2)
    lines: list[str] = []
    for name, entry in zip(names, entries, strict=True):
        cost = clean(entry.cost)
        said = textwrap.wrap(clean(entry.summary), room)
        said += [] if cost.startswith("nothing") else textwrap.wrap(f"cost a step: {cost}", room)
        head = name if len(name) <= size else ""
        lines += [] if head else [name]
        lines += [
            f"{part:<{size}}  {line}" for part, line in zip([head, *[""] * len(said)], said, strict=False)
        ]
    text = "\n".join(lines)
    return text if unicode else ascii_only(text)


def policy_explained(entry: Policy, *, width: int = 100, color: bool = False, unicode: bool = True) -> str:
    """Explain one policy.

    Returns:
        A paragraph a field.
    """
    fields = {
        "what": entry.summary,
        "formula": entry.formula,
        "cost a step": entry.cost,
        "example": f"hnf whatif RUN --from STEP --policy {entry.example}",
        "source": entry.reference,
    }
    name = spelling(entry)
    lines = [f"{_BOLD}{name}{_PLAIN}" if color else name]
    for label, said in fields.items():
        lines += textwrap.wrap(
            clean(said),
            max(min(width, 100), 40),
            initial_indent=f"  {label + ':':<13}",
            subsequent_indent=" " * 15,
            break_long_words=False,
            break_on_hyphens=False,
        )
    text = "\n".join(lines)
    return text if unicode else ascii_only(text)


def spelling(entry: Policy) -> str:
    """Spell a policy with its value.

    Returns:
        "lr-cap=RATE", "lr-ratchet".
    """
    return clean(f"{entry.name}={entry.value}" if entry.value else entry.name)


def _wrap(text: str, width: int, most: int) -> list[str]:
    lines = textwrap.wrap(text, width, subsequent_indent="  ")
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], _cut(" ".join([lines[most - 1], lines[most].strip()]), width)]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
