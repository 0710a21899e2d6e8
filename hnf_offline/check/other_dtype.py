"""Checkpoints saved in another precision than the rest."""

from __future__ import annotations

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, some
from hnf_offline.check.shapes import layouts, usual
from hnf_offline.findings import Fault


def look(series: Series) -> Outcome:
    """Compare the types of every checkpoint's tensors with those most checkpoints have.

    Returns:
        A warning for each that has others: rounding is a change that training did not make.
    """
    found, unseen = layouts(series)
    skipped = (
        f"{some(unseen, 'checkpoint')} of a layout whose types only reading the tensors tells"
        if unseen
        else ""
    )
    if len(found) < 2:
        return Outcome((), "", skipped or "fewer than two checkpoints")
    expected = usual(found)
    faults = []
    for step, layout in found.items():
        other = [
            name
            for name in expected.keys() & layout.keys()
            if layout[name][0] == expected[name][0] and layout[name][1] != expected[name][1]
        ]
        if other:
            name = min(other)
            evidence = (
                f"{len(other)} of {len(layout)} tensors are {layout[name][1]}, such as {name}; "
                f"{expected[name][1]} elsewhere"
            )
            faults.append(Fault(CHECK.name, "warning", step, series.path_of(step), evidence, CHECK.remedy))
    return Outcome(tuple(faults), f"{some(len(found), 'checkpoint')}", skipped)


CHECK = Check(
    name="other-dtype",
    cost="cheap",
    looks_for="tensors of another type than in the other checkpoints",
    matters="Rounding moves every weight by up to 0.4 % (bfloat16), more than many checkpoints of training do.",
    remedy="save all checkpoints in one precision, or leave this one out with --steps",
    look=look,
)
