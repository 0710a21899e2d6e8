"""Rows printed as Python or JSON dictionaries among other lines: `{'loss': 2.5, 'grad_norm': '0.35', 'epoch': 0.1}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import copy
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.blocks import Lines
from hnf_offline.run.logs.columns import meaning
from hnf_offline.run.logs.console_steps import ConsoleSteps
from hnf_offline.run.logs.overflow import Overflows
from hnf_offline.run.logs.raw import RawLog, Reading, as_number, flatten
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
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    return _ConsoleRows(path)


class _ConsoleRows:
    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self._rows = Rows()
        self._overflows = Overflows()
        self._steps = ConsoleSteps()
        self._trained = False
        self._skipped = 0

    def more(self) -> RawLog:
        self._read()
        if not self._trained:
            raise InputError(
                "holds no row with a loss", path=self._lines.path, remedy="name the log that training wrote"
            )
        rows = self._rows
        if self._overflows.seen:
            rows = rows.copy()  # more may follow
            copy(self._overflows).finish(rows)
        frame = rows.frame()
        skipped = self._skipped + self._lines.overlong
        notes = (*self._lines.notes(), *rows.notes())
        if any(meaning(name) == "step" for name in frame.columns):
            return RawLog(frame, skipped, notes)
        numbers, note = self._steps.numbered()
        return RawLog(frame.with_columns(numbers.alias("step")), skipped, (*notes, note))

    def places(self) -> dict[Path, int]:
        return self._lines.blocks.places()

    def _read(self) -> None:
        for line in self._lines:
            if self._overflows.reads(line):
                continue
            start = next((at for at in (line.find("{'"), line.find('{"')) if at >= 0), -1)
            if start < 0:
                self._steps.line(line)
                continue
            text = line[start : start + LONGEST_ROW]
            end = text.rfind("}") + 1
            row = _numbers(text[:end]) if end else {}
            if not row or "train_runtime" in row or not any("loss" in name for name in row):
                # A row of which the end is missing: what is left of it says that it was one.
                self._skipped += not end and ("'loss':" in text or '"loss":' in text)
                continue
            self._trained = self._trained or _is_training(row)
            self._steps.row(self._rows.height, row)
            self._rows.add(self._overflows.added(row))


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
