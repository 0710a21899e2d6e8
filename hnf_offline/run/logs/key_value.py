"""Lines of `key=value` or `key: value` that hold a step and a loss, whatever program wrote them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from hnf_offline.run.logs.columns import meaning, seems_a_loss
from hnf_offline.run.logs.raw import RawLog, Reading
from hnf_offline.run.logs.text_rows import LONGEST_ROW, NUMBER, TextRows

_WORD = r"[A-Za-z_][A-Za-z0-9_./%()]{0,60}"
_NAME = rf"{_WORD}(?:[ -]{_WORD}){{0,3}}"
#: Names that are understood without "=" or ":" before the number.
_BARE = (
    r"(?:global[ _]?|train(?:ing)?[ _]?)?(?:steps?|iter(?:ation)?s?|it|updates?)|epoch|lr|learning[ _]rate"
    r"|(?:train(?:ing)?[ _]|val(?:id(?:ation)?)?[ _]|test[ _]|eval[ _]|lm[ _])?(?:loss|ppl)"
    r"|grad(?:ient)?[ _]?norm|gnorm"
)
_VALUE = rf"(?:[A-Za-z_.]{{1,24}}[0-9]{{0,3}}\()?([-+]?[1-9]\d{{0,2}}(?:,\d{{3}}){{1,6}}(?:\.\d{{1,20}})?|{NUMBER})"
#: What may follow the number: the whole it is part of, a unit, a remark in brackets.
_UNIT = r"(?:[A-Za-z%/]{1,12}|\s(?:ms|s|secs?|it/s|s/it|tok/s|tokens/s|GiB|GB|MiB|MB|%))(?![\w=:])"
_AFTER = rf"(?:\s?/\s?[\d,]{{1,20}})?(?:{_UNIT})?(?:\([^()\s]{{0,30}}\))?(?=[\s,;|)\]}}>]|:(?:\s|$)|$)"
_PAIR = re.compile(
    rf"(?<![\w.])(?:({_NAME})\s{{0,8}}[=:]\s{{0,12}}|(?i:({_BARE}))[\s#\[(]{{1,8}}){_VALUE}{_AFTER}"
)
#: What a logger writes before a message, where it runs into the first name.
_LEVEL = re.compile(r"^(?:INFO|DEBUG|NOTICE|WARNING|root|main)[ -]+")
#: Share of the text from the first pair on that has to be pairs and what separates them: more is prose or source.
_SHARE = 0.6
_SEPARATORS = re.compile(r"[\s,;|\[\](){}<>=\-_*#]")
#: OLMo's console: "[step=10/739328,epoch=0]", then a line a metric. Source: allenai/OLMo@59a53e3 olmo/train.py,
#: log_metrics_to_console.
_BLOCK = re.compile(r"\[step=([\d,]{1,20})/[\d,]{1,20}(?:,epoch=\d{1,9}(?:/\d{1,9})?)?\]\s*$")
_METRIC = re.compile(rf"^\s{{2,12}}({_WORD})\s?=\s?{_VALUE}\s*$")
#: tqdm's postfix, as Lightning writes it: "Epoch 1:  50%|#| 5/10 [00:05<00:05, 9.87it/s, v_num=0, loss=2.3]".
_BAR = re.compile(
    r"^(?:Epoch (\d{1,9})[^:|]{0,20}: )?[^|]{0,60}\|[^|]{0,400}\|\s{0,20}(\d{1,15})/(\d{1,15}|\?)"
    r" \[[^,\]]{1,60}, [^,\]]{1,40}, (.*)\]"
)
#: Where an epoch and a place in it stand for the step: "Epoch: [3][ 120/5005]", "Train: 3 [ 120/1251 (10%)]".
_PLACE = re.compile(
    r"\b(?:Epoch|Train|Train Epoch):? {0,2}\[?(\d{1,7})\]?:? {0,2}\[ {0,8}(\d{1,12})/(\d{1,12})\b"
)
_COUNTED_ON = "The rows have no step; theirs is their place in an epoch, counted on through the epochs."
_HEAD_LINES = 200_000


def recognises(path: Path, head: str) -> bool:
    """Tell the format by two rows of different steps; a configuration, source code or prose has none.

    Returns:
        True where `read` should be tried.
    """
    if "oss" not in head:
        return False
    parser = _Parser()
    steps: set[tuple[float, ...]] = set()
    for line in head.split("\n", _HEAD_LINES)[:_HEAD_LINES]:
        row = parser(line[:LONGEST_ROW])
        if row and any(seems_a_loss(name) for name in row):
            steps.add(tuple(value for name, value in row.items() if meaning(name) == "step"))
            if len(steps) > 1:
                return True
    return False


def read(path: Path) -> RawLog:
    """Read the lines that hold a step and a loss.

    Returns:
        Its numeric columns.
    """
    return begin(path).more()


def begin(path: Path) -> Reading:
    """Begin to read a log that may be appended to.

    Returns:
        What reads it.
    """
    parser = _Parser()

    def finish(raw: RawLog) -> RawLog:
        return RawLog(raw.frame, raw.skipped_lines, (*raw.notes, _COUNTED_ON)) if parser.placed else raw

    return TextRows(path, parser, "key=value", finish)


def read_named(path: Path, columns: Mapping[str, str]) -> RawLog:
    """Read the lines that hold the columns a user named, where their names would not tell.

    Returns:
        Its numeric columns.
    """
    return TextRows(path, _Parser(columns.values()), "key=value").more()


class _Parser:
    def __init__(self, named: Collection[str] = ()) -> None:
        self._named = frozenset(named)
        self.placed = False
        self._block: float | None = None
        self._bar: dict[str, float] = {}

    def __call__(self, line: str) -> Mapping[str, float] | None:
        block = _BLOCK.search(line[-200:]) if "[step=" in line else None
        if block is not None:
            self._block = _number(block[1])
            return None
        if self._block is not None:
            metric = _METRIC.match(line)
            if metric is not None:
                return {"step": self._block, metric[1]: _number(metric[2])}
            self._block = None
        if not any(name in line for name in self._named) and "oss" not in line and "LOSS" not in line:
            return None
        bar = _BAR.match(line) if "%|" in line or "it [" in line else None
        return self._row(line) if bar is None else self._from_bar(bar)

    def _row(self, line: str) -> Mapping[str, float] | None:
        row: dict[str, float] = {}
        covered, start, end = 0, None, 0
        for found in _PAIR.finditer(line):
            start = found.start() if start is None else start
            covered += found.end() - found.start()
            covered += len(_SEPARATORS.findall(line[end : found.start()])) if end else 0
            end = found.end()
            row.setdefault(_LEVEL.sub("", found[1] or found[2]), _number(found[3]))
        place = _PLACE.search(line) if start is not None else None
        if place is not None and not any(meaning(name) == "step" for name in row):
            row = {"step": float(int(place[1]) * int(place[3]) + int(place[2])), **row}
            self.placed = True
        if start is None or not self._complete(row):
            return None
        rest = line[end:]
        covered += len(_SEPARATORS.findall(rest))
        return row if place is not None or covered >= _SHARE * (len(line) - start) else None

    def _from_bar(self, bar: re.Match[str]) -> Mapping[str, float] | None:
        row = {found[1] or found[2]: _number(found[3]) for found in _PAIR.finditer(bar[4])}
        if not any(meaning(name) == "step" for name in row):
            epochs = int(bar[1]) * int(bar[3]) if bar[1] and bar[3] != "?" else 0
            row = {"step": float(epochs + int(bar[2])), **row}
            if bar[2] == "0":
                return None
        if not self._complete(row):
            return None
        # A bar is drawn several times a step, first with the numbers of the step before; the last drawing counts.
        step = next(name for name in row if meaning(name) == "step")
        before, self._bar = self._bar, row
        return before if before and before.get(step) != row[step] else None

    def rest(self) -> Mapping[str, float] | None:
        """Give the row of the bar that was drawn last.

        Returns:
            The row, None where there is none.
        """
        return self._bar or None

    def _complete(self, row: Mapping[str, float]) -> bool:
        if self._named and not self._named.isdisjoint(row):
            return True
        return any(seems_a_loss(name) for name in row) and any(meaning(name) == "step" for name in row)


def _number(text: str) -> float:
    return float(text.replace(",", ""))
