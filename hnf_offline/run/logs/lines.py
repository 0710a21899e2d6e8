"""Lines of a text file in bounded memory: compressed or not, any line ending, lines of any length."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hnf_offline.errors import InputError

#: Characters of a line; a longer one is passed over and counted.
LONGEST_LINE = 1_000_000
#: Characters that a file may unpack to; what follows is not read.
LONGEST_TEXT = 4_000_000_000
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


@dataclass(slots=True)
class Lines:
    """The lines of a text file, without their endings; iterate once.

    Attributes:
        path: the file; gzip is recognised by its content.
        overlong: lines passed over because they were longer than `LONGEST_LINE`, known after iterating.
        broken: whether the file ended in the middle of its compressed data, known after iterating.
    """

    path: Path
    overlong: int = 0
    broken: bool = False

    def __iter__(self) -> Iterator[str]:
        """Read line after line; a carriage return ends a line too, as progress bars write it.

        Yields:
            The lines; bytes that are no text in the file's encoding become U+FFFD.

        Raises:
            InputError: when the file cannot be opened.
        """
        read = 0
        with open_text(self.path) as file:
            try:
                while read < LONGEST_TEXT:
                    line = file.readline(LONGEST_LINE)
                    if not line:
                        return
                    read += len(line)
                    if len(line) == LONGEST_LINE and not line.endswith("\n"):
                        self.overlong += 1
                        while line and not line.endswith("\n") and read < LONGEST_TEXT:
                            line = file.readline(LONGEST_LINE)
                            read += len(line)
                        continue
                    yield line.rstrip("\n")
            except (
                OSError,
                EOFError,
                zlib.error,
            ):  # truncated or damaged compressed data; what came before counts
                self.broken = True


def open_text(path: Path) -> IO[str]:
    """Open a text file for reading, compressed or not, in the encoding that its first bytes say.

    Returns:
        Text whose line endings are all line feeds.

    Raises:
        InputError: when the file cannot be opened.
    """
    try:
        file: IO[bytes] = path.open("rb")
        start = file.read(2)
        file.seek(0)
        if start == _GZIP:
            file = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    try:
        start = file.read(3)
        file.seek(0)
    except (OSError, EOFError, zlib.error):
        start = b""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
    return io.TextIOWrapper(file, encoding=encoding, errors="replace", newline=None)


def head(path: Path, characters: int) -> str:
    """Read the first characters of a text file.

    Returns:
        The text, "" where nothing can be read.
    """
    try:
        with open_text(path) as file:
            return file.read(characters)
    except (InputError, OSError, EOFError, zlib.error):
        return ""
