"""build-nanogpt: `step   10 | loss: 6.1 | lr 1e-4 | norm: 1.2 | dt: ...`, and its log.txt `10 train 6.1`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.text_rows import NUMBER, TextRows, seen

# Source: karpathy/build-nanogpt train_gpt2.py, training loop: "step {step:5d} | loss: {loss:.6f} | lr {lr:.4e}
# | norm: {norm:.4f} | dt: {ms:.2f}ms | tok/sec: {tokens:.2f}", "validation loss: {loss:.4f}"; log/log.txt holds
# "{step} val {loss:.4f}", "{step} hella {accuracy:.4f}" and "{step} train {loss:.6f}".
_STEP = re.compile(r"^\s{0,20}step\s{1,20}(\d{1,15}) \|(.*)", re.MULTILINE)
_FIELD = re.compile(rf"\s*([A-Za-z][A-Za-z/_ ]{{0,30}}?):?\s{{1,8}}({NUMBER})(?:ms|s)?\s*")
_TEXT = re.compile(rf"^(\d{{1,15}}) (train|val|hella) ({NUMBER})\s*$", re.MULTILINE)
_CUT = re.compile(r"^\d{1,15} (?:train|val|hella)\b")
_VALIDATION = re.compile(rf"^validation loss: ({NUMBER})\s*$")
_NAMES = {"train": "train loss", "val": "val loss", "hella": "hella"}


def recognises(path: Path, head: str) -> bool:
    """Tell the format by a row in the head.

    Returns:
        True where `read` should be tried.
    """
    if seen(_TEXT, head):
        return True
    return "| loss" in head and any("loss" in row[2] for row in _STEP.finditer(head))


def read(path: Path) -> RawLog:
    """Read the rows; a validation loss was measured just before the row that follows it.

    Returns:
        Its numeric columns.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    return TextRows(path, _Parser(), "build-nanogpt")


class _Parser:
    def __init__(self) -> None:
        self._validation: float | None = None

    def __call__(self, line: str) -> Mapping[str, float] | None:
        found = _TEXT.match(line)
        if found is not None:
            return {"step": float(found[1]), _NAMES[found[2]]: float(found[3])}
        found = _VALIDATION.match(line)
        if found is not None:
            self._validation = float(found[1])
            return None
        found = _STEP.match(line)
        if found is None:
            return {} if _CUT.match(line) else None
        matches = (_FIELD.fullmatch(piece) for piece in found[2].split("|")[:200])
        row = {match[1]: float(match[2]) for match in matches if match is not None}
        if not any("loss" in name for name in row):
            return {}
        if self._validation is not None:
            row["val loss"], self._validation = self._validation, None
        return {"step": float(found[1]), **row}
