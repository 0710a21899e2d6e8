"""How text files are opened: compressed or not, any encoding, any line ending, in bounded memory."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from hnf_offline.errors import InputError

#: Characters of a line; a longer one is passed over and counted.
LONGEST_LINE = 1_000_000
#: Characters that a file may hold or unpack to; what follows is not read.
LONGEST_TEXT = 4_000_000_000
#: A compressed file may unpack to the first, or to this many times its size; no log packs so well.
_UNPACKED, _PACKING = 200_000_000, 100
_GZIP = b"\x1f\x8b"
#: First bytes of a file, which tell its encoding.
ENCODING = 64
_BYTE_ORDER_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
#: Colours and cursor movements of terminals (ECMA-48), and control characters other than tab and line ends.
_NOISE = re.compile(
    r"\x1b\[[0-?]{0,64}[ -/]{0,8}[@-~]|\x1b\][^\x07\x1b]{0,1000}(?:\x07|\x1b\\)|\x1b[@-Z\\-_]?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]"
)


#: Whether a last line without an ending is still being written, and is left for later.
_ONLY_WHOLE: ContextVar[bool] = ContextVar("only_whole_lines", default=False)


@contextmanager
def only_whole_lines() -> Iterator[None]:
    """Leave out the last line of every text that is read meanwhile, as long as it has no ending.

    Of a log that grows the first half of a row can look like a whole one: "loss=2.3" of "loss=2.345".

    Yields:
        Nothing.
    """
    before = _ONLY_WHOLE.set(True)
    try:
        yield
    finally:
        _ONLY_WHOLE.reset(before)


def is_left_for_later() -> bool:
    """Say whether a last line without an ending is to be left out.

    Returns:
        True within `only_whole_lines`.
    """
    return _ONLY_WHOLE.get()


def left_unread(broken: bool, cut: bool) -> tuple[str, ...]:
    """Say what of a file was not read.

    Args:
        broken: whether its compressed data ended too early.
        cut: whether it holds more text than is read.

    Returns:
        A sentence for each.
    """
    said = []
    if broken:
        said.append("The compressed file ends too early or is damaged; what came before was read.")
    if cut:
        said.append("The file holds more text than is read of one file; the rest was left out.")
    return tuple(said)


def without_noise(text: str) -> str:
    """Take terminal colours and control characters out of a text.

    Returns:
        The text as it would be seen.
    """
    return text if text.isprintable() else _NOISE.sub("", text)


def most_text(path: Path) -> int:
    """Say how many characters are read of a file: few of one that only unpacks to many.

    Returns:
        The bound.

    Raises:
        InputError: when the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            size = file.seek(0, io.SEEK_END)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    return min(LONGEST_TEXT, max(_UNPACKED, _PACKING * size)) if packed else LONGEST_TEXT


def open_bytes(path: Path) -> tuple[IO[bytes], str]:
    """Open a file for reading, compressed or not, and tell its encoding by its first bytes.

    Returns:
        The uncompressed bytes, and the encoding.

    Raises:
        InputError: when the file cannot be opened.
    """
    try:
        file: IO[bytes] = path.open("rb")
        packed = file.read(2) == _GZIP
        file.seek(0)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    if packed:
        file = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
    try:
        start = file.read(ENCODING)
        file.seek(0)
    except (OSError, EOFError, zlib.error):
        start = b""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(start) >= 8:
        # Text in two bytes a character without a mark: every second byte is zero.
        half = len(start) // 2
        if start[1::2].count(0) == half and not start[::2].count(0):
            encoding = "utf-16-le"
        elif start[::2].count(0) >= half and not start[1::2].count(0):
            encoding = "utf-16-be"
    return file, encoding


def open_text(path: Path) -> IO[str]:
    """Open a text file for reading, compressed or not, in the encoding that its first bytes say.

    Returns:
        Text whose line endings are all line feeds.
    """
    file, encoding = open_bytes(path)
    return io.TextIOWrapper(file, encoding=encoding, errors="replace", newline=None)


def head(path: Path, characters: int) -> str:
    """Read the first characters of a text file, without colours and control characters.

    Returns:
        The text, "" where nothing can be read.
    """
    parts: list[str] = []
    size = 0
    try:
        with open_text(path) as file:
            # Small reads, so that what comes before a damage in compressed data is not lost.
            while size < characters and (part := file.read(min(characters - size, 8192))):
                parts.append(part)
                size += len(part)
    except (InputError, OSError, EOFError, ValueError, zlib.error):
        pass
    return _NOISE.sub("", "".join(parts))
