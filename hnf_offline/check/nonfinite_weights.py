"""NaN and infinite weights."""

from __future__ import annotations

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Portrait, Series, some
from hnf_offline.findings import Fault


def look(series: Series) -> Outcome:
    """Count weights that are NaN or infinite; checkpoints in a row that have some are told once.

    Returns:
        A danger for the first of each row.
    """
    if not series.portraits:
        return Outcome((), "", "no tensor could be read")
    stretches: list[list[Portrait]] = []
    broken_before = False
    for portrait in series.portraits:
        broken = any(tensor.nonfinite for tensor in portrait.tensors.values())
        if broken and broken_before:
            stretches[-1].append(portrait)
        elif broken:
            stretches.append([portrait])
        broken_before = broken
    about = {_fault(series, stretch): tuple(one.step for one in stretch) for stretch in stretches}
    return Outcome(tuple(about), some(len(series.portraits), "checkpoint"), covered=about)


def _fault(series: Series, stretch: list[Portrait]) -> Fault:
    first = stretch[0]
    broken = [(name, tensor) for name, tensor in first.tensors.items() if tensor.nonfinite]
    count = sum(tensor.nonfinite for _, tensor in broken)
    total = sum(tensor.size for tensor in first.tensors.values() if tensor.floating)
    evidence = (
        f"{count:,} of {total:,} weights are NaN or infinite, in {len(broken)} of {len(first.tensors)} tensors, "
        f"such as {broken[0][0]}"
    )
    if len(stretch) > 1:
        evidence += f"; so are weights of the following checkpoints up to step {stretch[-1].step}"
    return Fault(CHECK.name, "danger", first.step, series.path_of(first.step), evidence, CHECK.remedy)


CHECK = Check(
    name="nonfinite-weights",
    cost="weights",
    looks_for="NaN or infinite weights",
    matters="The run is dead from there on, or the file is damaged.",
    remedy="go back to the checkpoint before it; if training went on without harm, the file is damaged",
    look=look,
)
