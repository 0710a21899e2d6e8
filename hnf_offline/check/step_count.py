"""The step in a checkpoint's name against the steps its trainer state and its optimizer count."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, some
from hnf_offline.findings import Fault
from hnf_offline.run.formats.safetensors_file import read_json


def look(series: Series) -> Outcome:
    """Compare each checkpoint's name with what it counts itself.

    Returns:
        A danger for each that counts otherwise than the others, a warning where all are off by one, a remark where
        all are off by the same number or factor.
    """
    checkpoints = series.run.checkpoints
    if not checkpoints:
        return Outcome((), "", "the run has no checkpoints")
    states = {}
    for checkpoint in checkpoints:
        state = checkpoint.path / "trainer_state.json"
        count = read_json(state).get("global_step") if checkpoint.path.is_dir() else None
        if isinstance(count, int):
            states[checkpoint.step] = count
    optimizers = {
        one.step: one.optimizer.step
        for one in series.portraits or ()
        if one.optimizer is not None and one.optimizer.step is not None
    }
    faults = _compare(series, states, "trainer_state.json", "trainer_state.json")
    told = {fault.step for fault in faults}
    faults += [
        one
        for one in _compare(series, optimizers, "the optimizer", "")
        if one.step is None or one.step not in told
    ]
    looked = [f"{some(len(states), 'trainer state')}"] if states else []
    looked += [f"{some(len(optimizers), 'optimizer state')}"] if optimizers else []
    skipped = ""
    if series.portraits is None:
        skipped = "the optimizers' own counts: that takes reading them"
    elif len(optimizers) < len(series.portraits):
        skipped = (
            f"{some(len(series.portraits) - len(optimizers), 'checkpoint')} without an optimizer that counts"
        )
    return Outcome(tuple(faults), " and ".join(looked), skipped)


def _compare(series: Series, counts: dict[int, int], who: str, file: str) -> list[Fault]:
    off = {step: step - count for step, count in counts.items()}
    if not any(off.values()):
        return []
    steps = sorted(off)
    common, times = Counter(off.values()).most_common(1)[0]
    if len(off) == 1:
        return [_of_one(series, steps[0], counts[steps[0]], who, file, "warning")]
    if times == len(off):
        return [_of_all(common, who)]
    ratio = _ratio(counts)
    if ratio is not None:
        evidence = (
            f"{who} counts {ratio:g} steps for each step of the names, in all {some(len(off), 'checkpoint')}"
        )
        return [Fault(CHECK.name, "info", None, "", evidence, _COUNTS)]
    if _rises(off, steps):
        evidence = (
            f"{who} counts {off[steps[0]]} steps less than the name at step {steps[0]} and {off[steps[-1]]} less at "
            f"step {steps[-1]}: it was started afresh, or skipped steps"
        )
        return [Fault(CHECK.name, "info", None, "", evidence, _COUNTS)]
    expected = 0 if 0 in off.values() else common
    return [
        _of_one(series, step, counts[step], who, file, "danger") for step in steps if off[step] != expected
    ]


def _of_one(series: Series, step: int, count: int, who: str, file: str, severity: str) -> Fault:
    where = series.path_of(step)
    where = f"{where}/{file}" if file and where else where
    evidence = f"{who} counts {count} steps, the name says {step}"
    return Fault(CHECK.name, severity, step, where, evidence, CHECK.remedy)


def _of_all(common: int, who: str) -> Fault:
    evidence = (
        f"{who} counts {abs(common)} steps {'less' if common > 0 else 'more'} than the name, everywhere"
    )
    severity = "warning" if abs(common) == 1 else "info"
    return Fault(CHECK.name, severity, None, "", evidence, _COUNTS)


def _ratio(counts: dict[int, int]) -> float | None:
    ratios = [count / step for step, count in counts.items() if step]
    if len(ratios) < 2 or min(ratios) <= 0:
        return None
    return ratios[0] if max(ratios) - min(ratios) <= 1e-3 * max(ratios) else None


def _rises(off: dict[int, int], steps: list[int]) -> bool:
    # Never falls, never below zero, and no value stands alone amid others: a fresh start, or skipped steps.
    values = [off[step] for step in steps]
    return values[0] >= 0 and all(before <= after for before, after in pairwise(values)) and _small(off)


def _small(off: dict[int, int]) -> bool:
    # Skipped steps are few; after a fresh start at least two checkpoints are off by the same.
    few = all(0 <= gone <= 0.05 * step + 1 for step, gone in off.items())
    votes = Counter(off.values())
    return few or all(times > 1 for times in votes.values())


_COUNTS = "where the trainer skips steps, starts its optimizer afresh or counts otherwise, nothing"

CHECK = Check(
    name="step-count",
    cost="cheap",
    looks_for="another step in trainer_state.json or in the optimizer than in the name",
    matters="Everything is placed in time by the step in the name; a wrong name puts it beside the wrong losses.",
    remedy="the folder was renamed, or holds files of another step: copy it again",
    look=look,
)
