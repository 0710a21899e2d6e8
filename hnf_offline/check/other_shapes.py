"""Checkpoints whose tensors have other names or shapes than those of the rest."""

from __future__ import annotations

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, some
from hnf_offline.check.shapes import Layout, layouts, usual
from hnf_offline.findings import Fault


def look(series: Series) -> Outcome:
    """Compare every checkpoint's names and shapes with those most checkpoints have.

    Returns:
        A danger for each that has others.
    """
    found, unseen = layouts(series)
    skipped = (
        f"{some(unseen, 'checkpoint')} of a layout whose shapes only reading the tensors tells"
        if unseen
        else ""
    )
    if len(found) < 2:
        return Outcome((), "", skipped or "fewer than two checkpoints")
    expected = usual(found)
    faults = []
    for step, layout in found.items():
        evidence = _difference(layout, expected)
        if evidence:
            faults.append(Fault(CHECK.name, "danger", step, series.path_of(step), evidence, CHECK.remedy))
    return Outcome(tuple(faults), f"{some(len(found), 'checkpoint')}", skipped)


def _difference(layout: Layout, expected: Layout) -> str:
    parts = []
    lacking = sorted(expected.keys() - layout.keys())
    extra = sorted(layout.keys() - expected.keys())
    reshaped = [name for name in expected.keys() & layout.keys() if layout[name][0] != expected[name][0]]
    if reshaped:
        name = min(reshaped)
        parts.append(
            f"{len(reshaped)} tensors have other shapes, such as {name}: {list(layout[name][0])}, "
            f"{list(expected[name][0])} elsewhere"
        )
    if lacking:
        parts.append(f"lacks {len(lacking)} tensors that the others have, such as {lacking[0]}")
    if extra:
        parts.append(f"has {len(extra)} tensors that the others have not, such as {extra[0]}")
    return "; ".join(parts)


CHECK = Check(
    name="other-shapes",
    cost="cheap",
    looks_for="tensors of other names or shapes than in the other checkpoints",
    matters="Then it is another model, and no change between the two means anything.",
    remedy="it is of another model: take it out of the run, or keep the two in folders of their own",
    look=look,
)
