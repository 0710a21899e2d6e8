"""Megatron's stdout: ` iteration 10/ 100 | lm loss: 2.1E+00 | ...`, and that of what descends from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.text_rows import NUMBER, TextRows, seen

# Sources: NVIDIA/Megatron-LM@86df799 megatron/training/training.py, training_log and
# evaluate_and_print_results: every field ends with "|", a skipped iteration has no grad norm. Until 2020 (and in
# GLM) fields are spelled "lm loss 9.1E+00" without a colon. EleutherAI/gpt-neox megatron/logging.py,
# training_log: " samples/sec: 12.3 | iteration 10/ 320000 | ... | lm_loss: 1.1E+01 |".
_ROW = re.compile(r"\biteration\s{1,20}(\d{1,15})\s{0,20}/\s{0,20}\d{1,15}\s{0,20}\|")
_HEADER = re.compile(r"\biteration\s{1,20}(\d{1,15})\s{0,20}/\s{0,20}\d{1,15}\s{0,20}$")
_FIELD = re.compile(
    rf"\s*([A-Za-z][^:|]{{0,80}}?)\s{{0,20}}(?::|\s)\s{{0,20}}({NUMBER})\s*[A-Za-z/%]{{0,12}}\s*"
)
_EVALUATION = re.compile(r"\b(validation|test) loss at iteration\s{1,20}(\d{1,15})\b[^|]{0,200}\|(.*)")


def recognises(path: Path, head: str) -> bool:
    """Tell the format by a row in the head.

    Returns:
        True where `read` should be tried.
    """
    return "iteration" in head and seen(_ROW, head)


def read(path: Path) -> RawLog:
    """Read the rows of iterations, and those of evaluations under names that begin with "validation".

    Returns:
        Its numeric columns.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    return TextRows(path, _parse, "Megatron")


def _parse(line: str) -> Mapping[str, float] | None:
    if "iteration" not in line:
        return None
    evaluation = _EVALUATION.search(line)
    if evaluation is not None:
        values = _fields(evaluation[3].split("|")[:-1])
        return {
            "iteration": float(evaluation[2]),
            **{f"{evaluation[1]} {name}": value for name, value in values.items()},
        }
    if not _ROW.search(line):
        return None
    # What is not ended by "|" was cut off, or belongs to another line.
    pieces = line.split("|")[:-1]
    number, header = next((at, match) for at, piece in enumerate(pieces) if (match := _HEADER.search(piece)))
    after = pieces[number + 1 :]
    again = next((at for at, piece in enumerate(after) if _HEADER.search(piece)), len(after))
    values = _fields(pieces[:number]) | _fields(after[:again])
    return {"iteration": float(header[1]), **values} if values else {}


def _fields(pieces: list[str]) -> dict[str, float]:
    matches = (_FIELD.fullmatch(piece) for piece in pieces[:200])
    return {match[1]: float(match[2]) for match in matches if match is not None}
