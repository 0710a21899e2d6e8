"""Blocks of whole lines of a text file, and its lines one by one, in bounded memory; a file that grows is read on."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hnf_offline.run.logs.lines import (
    ENCODING,
    LONGEST_LINE,
    is_left_for_later,
    left_unread,
    most_text,
    open_bytes,
    without_noise,
)

#: Bytes of a block.
_BLOCK = 4_000_000


@dataclass(slots=True)
class Blocks:
    """The text of a file in blocks that end where a line ends.

    To iterate again goes on where it stopped: over what was appended since, and never over a line twice. A last line
    without an ending is a block of its own, unless it is left for later (`only_whole_lines`): then it is held until
    the rest of it was written. What is compressed has no place to go on from.

    Attributes:
        path: the file; gzip and two-byte encodings are recognised by its content.
        overlong: lines passed over because they were longer than `LONGEST_LINE`, known after iterating.
        broken: whether the file ended in the middle of its compressed data, known after iterating.
        cut: whether the file went on after what may be read of it, known after iterating.
        place: bytes that were read.
    """

    path: Path
    overlong: int = 0
    broken: bool = False
    cut: bool = False
    place: int = 0
    _decoder: codecs.IncrementalDecoder | None = None
    _rest: bytes = b""  # the beginning of a line
    _held: bytes = b""  # a carriage return whose line feed may follow
    _passing: bool = False  # inside a line that is too long
    _can_go_on: bool = False

    def __iter__(self) -> Iterator[bytes]:
        """Read block after block.

        Yields:
            Whole lines, each ended by a line feed; only the last may lack it.

        Raises:
            InputError: when the file cannot be opened.
        """
        for piece in self._pieces():
            text = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in piece else piece
            if self._passing:
                end = text.find(b"\n") + 1
                if not end:
                    continue
                text, self._passing = text[end:], False
            end = text.rfind(b"\n") + 1
            if end:
                block = b"".join((self._rest, memoryview(text)[:end]))
                self._rest = text[end:]
                yield self._short(block)
            else:
                self._rest += text
            if len(self._rest) > LONGEST_LINE:
                self._rest, self._passing = b"", True
                self.overlong += 1
        if self._rest and not is_left_for_later():
            rest, self._rest = self._rest, b""
            yield rest

    def notes(self) -> tuple[str, ...]:
        """Say what of the file was not read, known after iterating.

        Returns:
            A sentence for each.
        """
        return left_unread(self.broken, self.cut)

    def places(self) -> dict[Path, int]:
        """Say where reading would go on.

        Returns:
            The file and the bytes read; nothing for a file that has to be read anew, as compressed ones have.
        """
        # The first bytes tell the encoding.
        return {self.path: self.place} if self._can_go_on and self.place >= ENCODING else {}

    def _pieces(self) -> Iterator[bytes]:
        most = most_text(self.path)
        file, encoding = open_bytes(self.path)
        self._can_go_on = not isinstance(file, gzip.GzipFile)
        with file:
            if self.place:
                file.seek(self.place)
            elif not encoding.startswith("utf-8"):
                self._decoder = codecs.getincrementaldecoder(encoding)("replace")
            while not self.cut:
                piece = self._piece(file)
                if not piece:
                    break
                text = (
                    piece if self._decoder is None else self._decoder.decode(piece).encode("utf-8", "replace")
                )
                if self.place == 0 and encoding == "utf-8-sig":
                    text = text.removeprefix(codecs.BOM_UTF8)
                self.place += len(piece)
                text, self._held = self._held + text, b""
                if text.endswith(b"\r"):
                    text, self._held = text[:-1], b"\r"
                self.cut = self.place > most
                yield text
        if self._held and not is_left_for_later():
            self._held = b""
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


@dataclass(slots=True)
class Lines:
    """The lines of a text file, without their endings, colours and control characters.

    To iterate again goes on with what was appended since, as with `Blocks`.

    Attributes:
        path: the file; gzip is recognised by its content.
        unended: whether the line that was read last had no ending, so may have been cut off.
        blocks: what they are read from.
    """

    path: Path
    unended: bool = False
    blocks: Blocks = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = Blocks(self.path)

    def __iter__(self) -> Iterator[str]:
        """Read line after line; a carriage return ends a line too, as progress bars write it.

        Yields:
            The lines; bytes that are no text in the file's encoding become U+FFFD.

        Raises:
            InputError: when the file cannot be opened.
        """
        for block in self.blocks:
            *lines, rest = block.decode("utf-8", "replace").split("\n")
            self.unended = False
            for line in lines:
                yield without_noise(line)
            if rest:
                self.unended = True
                yield without_noise(rest)

    @property
    def overlong(self) -> int:
        """Lines passed over because they were too long, known after iterating."""
        return self.blocks.overlong

    def notes(self) -> tuple[str, ...]:
        """Say what of the file was not read, known after iterating.

        Returns:
            A sentence for each.
        """
        return self.blocks.notes()
