"""Optimizer state of another checkpoint, or of another model."""

from __future__ import annotations

import math
from collections import Counter

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import OptimizerPortrait, Portrait, Series, counted, some
from hnf_offline.findings import Fault


def look(series: Series) -> Outcome:
    """Compare the moments' hashes between steps, and their shapes with those of the weights.

    Returns:
        A danger for moments that are those of another step, or fit no weights.
    """
    with_state = [
        (one, one.optimizer) for one in series.portraits or () if one.optimizer and one.optimizer.moments
    ]
    total = len(series.portraits or ())
    lacking = total - len(with_state)
    skipped = (
        f"{lacking} of {some(total, 'checkpoint')} have no optimizer state with moments" if lacking else ""
    )
    if not with_state:
        return Outcome((), "", skipped or "no tensor could be read")
    faults = []
    groups: dict[tuple[tuple[str, str], ...], list[tuple[Portrait, OptimizerPortrait]]] = {}
    for portrait, optimizer in with_state:
        moments = {key: one.digest for key, one in optimizer.moments.items() if not one.zero}
        if moments:
            groups.setdefault(tuple(sorted(moments.items())), []).append((portrait, optimizer))
        unfit = _unfit(portrait, optimizer)
        if unfit:
            faults.append(_fault(series, portrait, unfit))
    for group in groups.values():
        if len(group) < 2:
            continue
        steps = tuple(portrait.step for portrait, _ in group)
        owner = next((portrait for portrait, state in group if state.step == portrait.step), None)
        wrong = [portrait for portrait, _ in group if portrait is not (owner or group[0][0])]
        evidence = f"{counted(steps)} have the same second moments, bit for bit"
        if owner is not None:
            evidence += f"; they are of step {owner.step}, which they count"
        faults.append(_fault(series, wrong[0], evidence))
    return Outcome(tuple(faults), f"{some(len(with_state), 'optimizer state')}", skipped)


def _unfit(portrait: Portrait, optimizer: OptimizerPortrait) -> str:
    shapes = {name: tensor.shape for name, tensor in portrait.tensors.items()}
    if optimizer.names:
        other = [
            name
            for name, moment in optimizer.moments.items()
            if name in shapes and moment.shape != shapes[name]
        ]
        if other:
            name = other[0]
            return (
                f"the moments of {len(other)} parameters have other shapes than the parameters, such as {name}: "
                f"{list(optimizer.moments[name].shape)} and {list(shapes[name])}"
            )
        return ""
    moments = Counter(moment.shape for moment in optimizer.moments.values())
    if all(len(shape) == 1 for shape in moments) and len(moments) <= 2 < len(shapes):
        return ""  # flat partitions of all parameters together
    weights = Counter(shapes.values())
    alone, left = moments - weights, weights - moments
    if not alone or _elements(alone) == _elements(left):
        return ""  # the same numbers in other tensors: experts are saved one by one and trained as one
    shape = next(iter(alone))
    return f"{alone.total()} of its moments fit no parameter, such as one of shape {list(shape)}"


def _elements(shapes: Counter[tuple[int, ...]]) -> int:
    return sum(number * math.prod(shape) for shape, number in shapes.items())


def _fault(series: Series, portrait: Portrait, evidence: str) -> Fault:
    files = portrait.checkpoint.optimizer_files
    where = series.relative(files[0]) if files else series.path_of(portrait.step)
    return Fault(CHECK.name, "danger", portrait.step, where, evidence, CHECK.remedy)


CHECK = Check(
    name="optimizer-state",
    cost="weights",
    looks_for="moments of another step, or of other shapes than the weights",
    matters="The stability ratio divides by these moments: with those of another step it is a number about nothing.",
    remedy="copy the optimizer file of this step again, or remove it: then the raw curvature is measured",
    look=look,
)
