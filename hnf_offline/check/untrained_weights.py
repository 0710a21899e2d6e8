"""Tensors that training never moved, and tensors of zeros: frozen on purpose, or forgotten."""

from __future__ import annotations

from collections.abc import Sequence

from hnf_offline.check.duplicates import constant
from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Portrait, Series, some
from hnf_offline.findings import Fault


def look(series: Series) -> Outcome:
    """Find tensors that are the same in all checkpoints, and those that end as zeros.

    Returns:
        At most one remark on each: neither is a fault in itself.
    """
    portraits = series.portraits or ()
    if not portraits:
        return Outcome((), "", "no tensor could be read")
    faults = []
    last = portraits[-1]
    still = {name for name in constant(portraits) if last.tensors.get(name) and last.tensors[name].floating}
    trained = any(tensor.floating and name not in still for name, tensor in last.tensors.items())
    if still and trained:
        what = "never change in the whole run (frozen parameters, or buffers)"
        faults.append(
            _remark(last, sorted(still), f"{what}: no curvature, no update ratio there means anything")
        )
    if still and not trained:
        faults.append(_remark(last, sorted(still), "never change in the whole run: nothing is trained in it"))
    zeros = sorted(
        name
        for name, tensor in last.tensors.items()
        if tensor.floating and tensor.size and not tensor.norm and not tensor.nonfinite
    )
    if zeros:
        faults.append(_remark(last, zeros, f"hold only zeros at step {last.step}"))
    skipped = "whether they moved: fewer than three checkpoints" if len(portraits) < 3 else ""
    return Outcome(tuple(faults), f"every tensor of {some(len(portraits), 'checkpoint')}", skipped)


def _remark(last: Portrait, names: Sequence[str], what: str) -> Fault:
    total = sum(tensor.size for tensor in last.tensors.values() if tensor.floating)
    share = sum(last.tensors[name].size for name in names) / max(1, total)
    evidence = f"{len(names)} tensors ({share:.2%} of the parameters), such as {names[0]}, {what}"
    return Fault(CHECK.name, "info", None, "", evidence, CHECK.remedy)


CHECK = Check(
    name="untrained-weights",
    cost="weights",
    looks_for="tensors that never change, or hold only zeros",
    matters="They are part of every norm and of no update; where they were meant to train, something is unplugged.",
    remedy="nothing where they are meant to be frozen; else look whether the optimizer was given them",
    look=look,
)
