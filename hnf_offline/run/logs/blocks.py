"""Blocks of whole lines of a text file, as UTF-8 bytes: what a fast parser takes, in bounded memory."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hnf_offline.run.logs.lines import LONGEST_LINE, is_left_for_later, left_unread, most_text, open_bytes

#: Bytes of a block.
_BLOCK = 4_000_000


@dataclass(slots=True)
class Blocks:
    """The text of a file in blocks that end where a line ends; iterate once.

    Attributes:
        path: the file; gzip and two-byte encodings are recognised by its content.
        overlong: lines passed over because they were longer than `LONGEST_LINE`, known after iterating.
        broken: whether the file ended in the middle of its compressed data, known after iterating.
        cut: whether the file went on after what may be read of it, known after iterating.
    """

    path: Path
    overlong: int = 0
    broken: bool = False
    cut: bool = False

    def __iter__(self) -> Iterator[bytes]:
        """Read block after block.

        Yields:
            Whole lines, each ended by a line feed; only the last may lack it.

        Raises:
            InputError: when the file cannot be opened.
        """
        rest = b""
        passing = False  # inside a line that is too long
        for piece in self._pieces():
            text = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in piece else piece
            if passing:
                end = text.find(b"\n") + 1
                if not end:
                    continue
                text, passing = text[end:], False
            end = text.rfind(b"\n") + 1
            if end:
                yield self._short(b"".join((rest, memoryview(text)[:end])))
                rest = text[end:]
            else:
                rest += text
            if len(rest) > LONGEST_LINE:
                rest, passing = b"", True
                self.overlong += 1
        if rest and not is_left_for_later():
            yield rest

    def notes(self) -> tuple[str, ...]:
        """Say what of the file was not read, known after iterating.

        Returns:
            A sentence for each.
        """
        return left_unread(self.broken, self.cut)

    def _pieces(self) -> Iterator[bytes]:
        most = most_text(self.path)
        read = 0
        file, encoding = open_bytes(self.path)
        decoder = None if encoding.startswith("utf-8") else codecs.getincrementaldecoder(encoding)("replace")
        held = b""  # a carriage return whose line feed may be in the next piece
        with file:
            while True:
                piece = self._piece(file)
                if read == 0 and encoding == "utf-8-sig":
                    piece = piece.removeprefix(codecs.BOM_UTF8)
                if not piece:
                    break
                read += len(piece)
                text = piece if decoder is None else decoder.decode(piece).encode("utf-8", "replace")
                text, held = held + text, b""
                if text.endswith(b"\r"):
                    text, held = text[:-1], b"\r"
                yield text
                if read > most:
                    self.cut = True
                    break
        if held:
            yield b"\n"

    def _piece(self, file: IO[bytes]) -> bytes:
        # Small reads, so that nothing before a damage in compressed data is lost.
        parts: list[bytes] = []
        size = 0
        while size < _BLOCK and not self.broken:
            try:
                part = file.read1(_BLOCK - size)  # type: ignore[attr-defined]
            except (OSError, EOFError, zlib.error):
                self.broken = True
                break
            if not part:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def _short(self, block: bytes) -> bytes:
        # Without the lines that are too long; most blocks have none.
        start = 0
        while len(block) - start > LONGEST_LINE:
            end = block.rfind(b"\n", start, start + LONGEST_LINE + 1)
            if end < 0:
                break
            start = end + 1
        else:
            return block
        lines = block.splitlines(keepends=True)
        kept = [line for line in lines if len(line) <= LONGEST_LINE + 1]
        self.overlong += len(lines) - len(kept)
        return b"".join(kept)
