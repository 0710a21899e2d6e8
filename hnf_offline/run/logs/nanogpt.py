"""nanoGPT: `iter 240: loss 3.1, time 25 ms`, `step 250: train loss 3.0, val loss 3.1`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.text_rows import NUMBER, TextRows, seen

# Source: karpathy/nanoGPT@3adf61e train.py l.264-272 (evaluations) and l.318-325 (iterations).
_ITERATION = re.compile(
    rf"\biter (\d{{1,15}}): loss ({NUMBER})(?=,|\s|$)(?:, time ({NUMBER})\s?ms)?(?:, mfu ({NUMBER})%)?"
)
_EVALUATION = re.compile(rf"\bstep (\d{{1,15}}): train loss ({NUMBER}), val loss ({NUMBER})(?=,|\s|$)")
_BEGINNING = re.compile(r"^iter \d{1,15}: |\bstep \d{1,15}: train loss ")
_ROW = re.compile(f"{_ITERATION.pattern}|{_EVALUATION.pattern}")

_ESTIMATES = (
    "The log has no losses of iterations; the loss is the train loss that was estimated at each evaluation."
)


def recognises(path: Path, head: str) -> bool:
    """Tell the format by a row in the head.

    Returns:
        True where `read` should be tried.
    """
    return ("iter " in head or ", val loss " in head) and seen(_ROW, head)


def read(path: Path) -> RawLog:
    """Read the rows of iterations, which count from 0; evaluations keep columns of their own.

    Returns:
        Its numeric columns; the estimated train loss is the loss where there is no other.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    return TextRows(path, _parse, "nanoGPT", _with_estimates)


def _with_estimates(raw: RawLog) -> RawLog:
    if "loss" in raw.frame.columns:
        return raw
    frame = raw.frame.rename({"estimated train loss": "train loss"})
    return RawLog(frame, raw.skipped_lines, (*raw.notes, _ESTIMATES))


def _parse(line: str) -> Mapping[str, float] | None:
    found = _ITERATION.search(line)
    if found is not None:
        names = ("iter", "loss", "iter_time", "mfu")
        return {
            name: float(text) for name, text in zip(names, found.groups(), strict=True) if text is not None
        }
    found = _EVALUATION.search(line)
    if found is not None:
        return {
            "iter": float(found[1]),
            "estimated train loss": float(found[2]),
            "val loss": float(found[3]),
        }
    return {} if _BEGINNING.search(line) else None
