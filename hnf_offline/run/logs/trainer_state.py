"""trainer_state.json of the Hugging Face Trainer: the rows of its log_history; and other JSON lists of rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.lines import most_text, open_text
from hnf_offline.run.logs.raw import RawLog, flatten
from hnf_offline.run.logs.rows import Rows

#: Characters of a state that are read; ten million rows take more.
_LONGEST = 400_000_000
_MOST_FAILURES = 200
_HISTORY = re.compile(r'"log_history"\s*:\s*')
_BETWEEN = re.compile(r"[\s,]*")

_HIDDEN = (
    "grad_norm is NaN at {count} rows whose loss is a number, first at step {step}: the Trainer's "
    "logging_nan_inf_filter (on by default) keeps NaN losses out of what it logs, so these losses may hide one."
)


def recognises(path: Path, head: str) -> bool:
    """Tell a trainer state by its name or its log_history, or a JSON object or list that spans several lines.

    Returns:
        True where `read` should be tried.
    """
    if path.name == "trainer_state.json" or (head.lstrip()[:1] == "{" and _HISTORY.search(head)):
        return True
    return path.suffix == ".json" and head.lstrip()[:1] in {"{", "["}


def read(path: Path) -> RawLog:
    """Read log_history; NaN and Infinity may be bare. The closing summary of a run is no row.

    Evaluation rows keep their own columns (`eval_loss`) and never supply the training loss. Of a file that was cut
    short the rows before the cut are read.

    Returns:
        Its numeric columns.

    Raises:
        InputError: when the file is not JSON or has no log_history.

    Source: transformers 5.23.0 src/transformers/trainer_callback.py, TrainerState.
    """
    with open_text(path) as file:
        try:
            text = file.read(min(_LONGEST, most_text(path)))
        except (OSError, EOFError, ValueError) as error:
            raise InputError(
                f"cannot be read ({error})", path=path, remedy="copy it again from the run"
            ) from error
    start = text.lstrip("\ufeff \t\r\n")[:1]
    begin = _HISTORY.search(text) if start == "{" else re.match(r"\s*", text)
    if start not in {"{", "["} or (begin is None and not text.rstrip().endswith("}")):
        raise InputError("is not JSON", path=path, remedy="copy it again from the run")
    if begin is None or text[begin.end() : begin.end() + 1] != "[":
        raise InputError("has no log_history", path=path, remedy="name the log file that training wrote")
    rows = Rows()
    skipped = 0
    hidden: list[object] = []
    for row in _objects(text, begin.end() + 1):
        if row is None:
            skipped += 1
        elif "train_runtime" not in row:
            rows.add(flatten(row))
            if _is_nan(row.get("grad_norm")) and "loss" in row and not _is_nan(row["loss"]):
                hidden.append(row.get("step", -1))
    said = (_HIDDEN.format(count=len(hidden), step=hidden[0]),) if hidden else ()
    return RawLog(rows.frame(), skipped, (*said, *rows.notes()))


def _objects(text: str, position: int) -> Iterator[dict[str, object] | None]:
    # The objects of a list, one after the other; None for what is no object. A bad one is passed over.
    decode = json.JSONDecoder().raw_decode
    wasted = failures = 0
    while True:
        position = _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
        if text[position : position + 1] in {"]", ""}:
            return
        try:
            value, position = decode(text, position)
        except (ValueError, RecursionError) as error:
            yield None
            # A text that never ends was cut off; and what only looks like a list of rows must not take for ever.
            failures += 1
            wasted += max(error.pos - position, 0) if isinstance(error, json.JSONDecodeError) else 0
            if failures > _MOST_FAILURES or wasted > len(text) or str(error).startswith("Unterminated"):
                return
            position = text.find("{", position + 1)
            if position < 0:
                return
            continue
        yield value if isinstance(value, dict) else None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
