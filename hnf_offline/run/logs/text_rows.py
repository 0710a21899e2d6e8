"""The loop that the readers of text logs share: rows among other lines, overflow lines put to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.blocks import Lines
from hnf_offline.run.logs.overflow import Overflows
from hnf_offline.run.logs.raw import RawLog
from hnf_offline.run.logs.rows import Rows

#: A number as programs print it: digits of bounded count, nan and infinity. Single precision goes to 1e38, which has
#: 39 digits where it is printed as %.4f.
NUMBER = r"[-+]?(?:[0-9]{1,40}(?:\.[0-9]{0,30})?(?:[eE][-+]?[0-9]{1,4})?|\.[0-9]{1,30}|nan|NaN|inf(?:inity)?|Infinity)"
#: Characters of a line in which a row is looked for.
LONGEST_ROW = 20_000

#: Sets of names that rows had, as far as they are remembered.
_MOST_SHAPES = 100
_MAY_GO_ON = frozenset("0123456789.eE+-")

#: What a line is to a reader: a row, an empty mapping for a row that cannot be read, None for any other line. A reader
#: that holds a row back until a later line ends it has a method `rest`, which gives what is held after the last line.
Parse = Callable[[str], Mapping[str, float] | None]


class TextRows:
    """Reads the rows of a text log, and goes on with those that are appended."""

    def __init__(
        self, path: Path, parse: Parse, what: str, finish: Callable[[RawLog], RawLog] = lambda raw: raw
    ) -> None:
        """Begin.

        Args:
            path: the file.
            parse: reads one line.
            what: the format's name, for error messages.
            finish: what is done with all rows in the end.
        """
        self._parse, self._what, self._finish = parse, what, finish
        self._lines = Lines(path)
        self._rows = Rows()
        self._overflows = Overflows()
        self._skipped = 0
        self._known: set[frozenset[str]] = set()

    def more(self) -> RawLog:
        """Read the rows that were not read yet.

        Returns:
            All rows in file order; `skipped_steps` and `loss_scale` where lines between them told of overflows.

        Raises:
            InputError: when the file cannot be opened or holds no row.
        """
        self._read()
        rows, overflows = self._rows, self._overflows
        rest: Callable[[], Mapping[str, float] | None] | None = getattr(self._parse, "rest", None)
        held = None if rest is None else rest()
        if held or overflows.seen:
            # What is not complete is told as it stands, in a copy: more may follow.
            rows, overflows = rows.copy(), copy(overflows)
            if held:
                rows.add(overflows.added(held))
            overflows.finish(rows)
        if not rows.height:
            raise InputError(
                f"holds no row of a {self._what} log",
                path=self._lines.path,
                remedy="name the log that training wrote",
            )
        notes = (*self._lines.notes(), *rows.notes())
        return self._finish(RawLog(rows.frame(), self._skipped + self._lines.overlong, notes))

    def places(self) -> dict[Path, int]:
        """Say how far the file was read.

        Returns:
            The file and its bytes.
        """
        return self._lines.blocks.places()

    def _read(self) -> None:
        bar = hasattr(self._parse, "rest")
        for line in self._lines:
            if self._overflows.reads(line):
                continue
            row = self._parse(line[:LONGEST_ROW] if len(line) > LONGEST_ROW else line)
            if row is None:
                continue
            if not row:
                self._skipped += 1
                continue
            names = frozenset(row)
            fewer = not bar and names not in self._known
            if self._lines.unended and self._known and (fewer or line[-1:] in _MAY_GO_ON):
                # The last line was cut off: values are missing, or its last number may be but the first digits.
                self._skipped += 1
                continue
            if len(self._known) < _MOST_SHAPES:
                self._known.add(names)
            self._rows.add(self._overflows.added(row))


def seen(pattern: re.Pattern[str], head: str) -> bool:
    """Tell whether a line of the head is a row.

    Args:
        pattern: a row's beginning, compiled with MULTILINE.
        head: the first characters of a file.

    Returns:
        Whether it is found.
    """
    return pattern.search(head) is not None
