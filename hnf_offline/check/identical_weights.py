"""Checkpoints of different steps with the same weights: whole, or single shards and tensors."""

from __future__ import annotations

from hnf_offline.check import file_blocks
from hnf_offline.check.duplicates import constant, find_duplicates, moving, shares, stood_still
from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, counted, some
from hnf_offline.findings import Fault

#: Share of the moving parameters from which on single tensors that are the same are told.
_LEAST_SHARE = 0.01


def look(series: Series) -> Outcome:
    """Compare hashes of all tensors, or blocks of the files where no tensor was read.

    Returns:
        A danger for each group of whole duplicates, a warning for each pair that shares some tensors.
    """
    if len(series.run.checkpoints) < 2:
        return Outcome((), "", "fewer than two checkpoints")
    if series.portraits is None:
        return file_blocks.look(series, CHECK.name, CHECK.remedy)
    portraits = series.portraits
    if len(portraits) < 2:
        return Outcome((), "", "fewer than two checkpoints could be read")
    still = constant(portraits)
    faults = []
    covered = {}
    whole: set[int] = set()
    for group in find_duplicates(series):
        whole |= set(group.steps)
        tensors = moving(next(one for one in portraits if one.step == group.steps[0]), still)
        evidence = f"{counted(group.steps)} hold the same weights, all {len(tensors)} tensors bit for bit"
        if group.owner is not None:
            evidence += f"; they are of step {group.owner}: {group.because}"
        step = group.wrong[0]
        fault = Fault(CHECK.name, "danger", step, series.path_of(step), evidence, CHECK.remedy)
        covered[fault] = group.wrong
        faults.append(fault)
    by_step = {portrait.step: portrait for portrait in portraits}
    for (earlier, later), names in shares(portraits, still).items():
        if {earlier, later} <= whole or stood_still(series, (earlier, later)):
            continue
        portrait = by_step[later].tensors
        moved = sum(portrait[name].size for name in moving(by_step[later], still))
        same = sum(portrait[name].size for name in names)
        if same < _LEAST_SHARE * moved:
            continue
        evidence = (
            f"{len(names)} tensors ({same / moved:.0%} of the parameters that move), such as {names[0]}, are bit for "
            f"bit those of step {earlier}; the others are not"
        )
        faults.append(Fault(CHECK.name, "warning", later, series.path_of(later), evidence, _PART_REMEDY))
    return Outcome(tuple(faults), f"every tensor of {some(len(portraits), 'checkpoint')}", covered=covered)


_PART_REMEDY = "a shard or a part of the file is of another step: copy this checkpoint again"

CHECK = Check(
    name="identical-weights",
    cost="cheap",
    looks_for="the same weights under different steps, whole or in part",
    matters="A step that holds weights of another one shows no change where there was one, and a jump after it.",
    remedy="copy the checkpoint again from where it was written, or leave it out: it holds weights of another step",
    look=look,
)
