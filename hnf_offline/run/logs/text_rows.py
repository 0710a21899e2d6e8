"""The loop that the readers of text logs share: rows among other lines, overflow lines put to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.lines import Lines
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


def read_rows(path: Path, parse: Parse, what: str) -> RawLog:
    """Read the rows of a text log.

    Args:
        path: the file.
        parse: reads one line.
        what: the format's name, for error messages.

    Returns:
        The rows in file order; `skipped_steps` and `loss_scale` where lines between them told of overflows.

    Raises:
        InputError: when the file cannot be opened or holds no row.
    """
    rows, skipped, notes = collect(path, parse)
    if not rows.height:
        raise InputError(
            f"holds no row of a {what} log", path=path, remedy="name the log that training wrote"
        )
    return RawLog(rows.frame(), skipped, (*notes, *rows.notes()))


def collect(path: Path, parse: Parse) -> tuple[Rows, int, tuple[str, ...]]:
    """Collect the rows of a text log.

    Returns:
        The rows, the lines that could not be read, and what there is to say of the file.
    """
    rows = Rows()
    overflows = Overflows()
    lines = Lines(path)
    skipped = 0
    known: set[frozenset[str]] = set()
    rest: Callable[[], Mapping[str, float] | None] | None = getattr(parse, "rest", None)
    for line in lines:
        if overflows.reads(line):
            continue
        row = parse(line[:LONGEST_ROW] if len(line) > LONGEST_ROW else line)
        if row is None:
            continue
        if not row:
            skipped += 1
            continue
        names = frozenset(row)
        fewer = rest is None and names not in known
        if lines.unended and known and (fewer or line[-1:] in _MAY_GO_ON):
            # The last line was cut off: values are missing, or its last number may be but the first digits.
            skipped += 1
            continue
        if len(known) < _MOST_SHAPES:
            known.add(names)
        rows.add(overflows.added(row))
    if rest is not None and (held := rest()):
        rows.add(overflows.added(held))
    overflows.finish(rows)
    return rows, skipped + lines.overlong, lines.notes()


def seen(pattern: re.Pattern[str], head: str) -> bool:
    """Tell whether a line of the head is a row.

    Args:
        pattern: a row's beginning, compiled with MULTILINE.
        head: the first characters of a file.

    Returns:
        Whether it is found.
    """
    return pattern.search(head) is not None
