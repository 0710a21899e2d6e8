"""Weights stored in half precision: how much of what training did is left in the files."""

from __future__ import annotations

from itertools import pairwise

from hnf_offline.check.registry import Check, Outcome
from hnf_offline.check.series import Series, some
from hnf_offline.findings import Fault

_HALF = {"float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"}
#: Share of the elements that are bit for bit those of the checkpoint before from which on it is a fault.
_MOST_UNCHANGED = 0.5


def look(series: Series) -> Outcome:
    """Count the elements of half-precision tensors that a whole gap between checkpoints left as they were.

    Returns:
        A warning where that is most of them; a remark where the optimizer's state says training was in float32.
    """
    portraits = series.portraits or ()
    if not portraits:
        return Outcome((), "", "no tensor could be read")
    kinds = {
        tensor.dtype
        for one in portraits
        for tensor in one.tensors.values()
        if tensor.floating and tensor.size
    }
    half = sorted(kinds & _HALF)
    if not half:
        return Outcome((), f"types of {some(len(portraits), 'checkpoint')}")
    shares = []
    for before, after in pairwise(portraits):
        same = total = 0
        for name, tensor in after.tensors.items():
            other = before.tensors.get(name)
            if other is None or tensor.dtype not in _HALF or other.shape != tensor.shape:
                continue
            if other.digest != tensor.digest:  # what never moves is told elsewhere
                same += int((tensor.sample == other.sample).sum())
                total += len(tensor.sample)
        if total:
            shares.append(same / total)
    unchanged = sorted(shares)[len(shares) // 2] if shares else 0.0
    full = any(
        moment.dtype == "float32"
        for one in portraits
        if one.optimizer is not None
        for moment in one.optimizer.moments.values()
    )
    stored = f"weights are stored as {' and '.join(half)}"
    if unchanged >= _MOST_UNCHANGED:
        evidence = (
            f"{stored}: {unchanged:.0%} of them are bit for bit those of the checkpoint before (median)"
        )
        fault = Fault(CHECK.name, "warning", None, "", evidence, CHECK.remedy)
        return Outcome((fault,), f"types and changes of {some(len(portraits), 'checkpoint')}")
    if full:
        evidence = (
            f"{stored}, the optimizer's state is float32: the files are rounded copies of what was trained"
        )
        fault = Fault(CHECK.name, "info", None, "", evidence, CHECK.remedy)
        return Outcome((fault,), f"types and changes of {some(len(portraits), 'checkpoint')}")
    return Outcome((), f"types and changes of {some(len(portraits), 'checkpoint')}")


CHECK = Check(
    name="save-precision",
    cost="weights",
    looks_for="weights stored in less precision than they were trained in",
    matters="Changes below the resolution of the files are lost; what is measured between checkpoints is rounding.",
    remedy="save float32 master weights; with these files trust only changes over long gaps",
    look=look,
)
