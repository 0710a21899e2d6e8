"""Rows printed as Python or JSON dictionaries among other lines: `{'loss': 2.5, 'grad_norm': '0.35', 'epoch': 0.1}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.columns import meaning
from hnf_offline.run.logs.console_steps import ConsoleSteps
from hnf_offline.run.logs.lines import Lines
from hnf_offline.run.logs.overflow import Overflows
from hnf_offline.run.logs.raw import RawLog, as_number, flatten
from hnf_offline.run.logs.rows import Rows
from hnf_offline.run.logs.text_rows import LONGEST_ROW, NUMBER

# Source: transformers 5.23.0 src/transformers/trainer_callback.py, ProgressCallback.on_log (numbers become texts of
# four digits) and PrinterCallback.on_log (plain numbers); before 5.0 both printed plain numbers.
_ROW = re.compile(r"\{['\"][^\n]{3,20000}\}")
_ITEM = re.compile(
    r"(['\"])([^'\"\\\n]{1,300})\1:\s{0,4}"
    rf"(?:(?:[A-Za-z_.]{{1,24}}[0-9]{{0,3}}\()?({NUMBER})(?=\s{{0,4}}[,}})])|(['\"])\s{{0,4}}({NUMBER})\s{{0,4}}\4)"
)


def recognises(path: Path, head: str) -> bool:
    """Tell the format by a training row: a dictionary with a loss and a step, an epoch or a learning rate.

    Returns:
        True where `read` should be tried.
    """
    if "{'" not in head and '{"' not in head:
        return False
    return any(_is_training(_numbers(found[0])) for found in _ROW.finditer(head) if "loss" in found[0])


def read(path: Path) -> RawLog:
    """Read the rows; where they have no step it is that of the progress bar, or of the epoch, or they are counted.

    The closing summary of a run is no row.

    Returns:
        Its numeric columns.

    Raises:
        InputError: when there is no training row.
    """
    rows = Rows()
    overflows = Overflows()
    steps = ConsoleSteps()
    lines = Lines(path)
    trained = False
    skipped = 0
    for line in lines:
        if overflows.reads(line):
            continue
        start = next((at for at in (line.find("{'"), line.find('{"')) if at >= 0), -1)
        if start < 0:
            steps.line(line)
            continue
        text = line[start : start + LONGEST_ROW]
        end = text.rfind("}") + 1
        row = _numbers(text[:end]) if end else {}
        if not row or "train_runtime" in row or not any("loss" in name for name in row):
            # A row of which the end is missing: what is left of it says that it was one.
            skipped += not end and ("'loss':" in text or '"loss":' in text)
            continue
        trained = trained or _is_training(row)
        steps.row(rows.height, row)
        rows.add(overflows.added(row))
    overflows.finish(rows)
    if not trained:
        raise InputError("holds no row with a loss", path=path, remedy="name the log that training wrote")
    frame = rows.frame()
    notes = (*lines.notes(), *rows.notes())
    if any(meaning(name) == "step" for name in frame.columns):
        return RawLog(frame, skipped + lines.overlong, notes)
    numbers, note = steps.numbered()
    frame = frame.with_columns(numbers.alias("step"))
    return RawLog(frame, skipped + lines.overlong, (*notes, note))


def _numbers(text: str) -> dict[str, float]:
    if text.startswith('{"'):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, Mapping):
            numbers = {name: as_number(value) for name, value in flatten(row).items()}
            return {name: number for name, number in numbers.items() if number is not None}
    return {item[2]: float(item[3] or item[5]) for item in _ITEM.finditer(text)}


def _is_training(row: Mapping[str, float]) -> bool:
    meanings = {meaning(name) for name in row}
    return "loss" in meanings and ("epoch" in row or not meanings.isdisjoint({"step", "learning_rate"}))
