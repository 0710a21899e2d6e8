"""The parts of a weight file that say what is in it: a header, pickles, or a zip's directory and its small members."""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from hnf_offline.errors import UserError
from hnf_offline.run.remote.source import Entry, Source
from hnf_offline.run.stored_rows import IMAGES, TOKENS

_BLOCK = 64 * 2**10
_MOST_BLOCKS = 4096
_LONGEST_HEADER = 100_000_000
_LARGEST_MEMBER = 64 * 2**20
#: The numbers of tensors, in a file of torch.save (torch 2.13 serialization.py, `data/<key>`).
_NUMBERS = re.compile(r"(?:.*/)?data/\d+")

TORCH_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt"}


class _Reader(io.RawIOBase):
    """A far file as a seekable one: reads whole blocks, and hands on what was asked for."""

    def __init__(self, source: Source, entry: Entry, keep: Callable[[int, bytes], None]) -> None:
        self._source, self._entry, self._keep = source, entry, keep
        self._blocks: dict[int, bytes] = {}
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._entry.size)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        start = min(self._at, self._entry.size)
        stop = self._entry.size if size < 0 else min(start + size, self._entry.size)
        first, last = start // _BLOCK, -(-stop // _BLOCK)
        missing = [block for block in range(first, last) if block not in self._blocks]
        if len(self._blocks) + len(missing) > _MOST_BLOCKS:
            raise zipfile.BadZipFile("too long for a description")
        if missing:
            begin = missing[0] * _BLOCK
            data = self._source.read(self._entry, begin, min((missing[-1] + 1) * _BLOCK, self._entry.size))
            for block in missing:
                self._blocks[block] = data[block * _BLOCK - begin : (block + 1) * _BLOCK - begin]
        data = b"".join(self._blocks[block] for block in range(first, last))
        data = data[start - first * _BLOCK : stop - first * _BLOCK]
        self._keep(start, data)
        self._at = start + len(data)
        return data


def write_parts(source: Source, entry: Entry, target: Path) -> None:
    """Lay out a file of the right size that holds nothing but the parts that say what is in it.

    Args:
        source: where the file is.
        entry: the file.
        target: the placeholder; holes take no disk.

    Raises:
        UserError: if the file cannot be read.
    """
    with target.open("wb") as file:
        file.truncate(entry.size)

        def keep(start: int, data: bytes) -> None:
            file.seek(start)
            file.write(data)

        reader = _Reader(source, entry, keep)
        if target.suffix == ".safetensors":
            length = int.from_bytes(reader.read(8), "little")
            if length <= min(entry.size - 8, _LONGEST_HEADER):
                reader.read(length)
            return
        if target.suffix not in TORCH_SUFFIXES:
            return
        start = reader.read(2)
        reader.seek(0)
        try:
            if start == b"PK":
                _read_directory(reader)
            elif start[:1] == b"\x80":
                _read_pickles(reader)
        except UserError:
            raise
        except Exception:  # damaged: who reads the placeholder will say so, in whatever way it is
            return


def holds_batches(file: Path) -> bool:
    """Tell from the header whether a safetensors file holds rows to replay, by the names that are looked for.

    Returns:
        True where it does.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(min(length, _LONGEST_HEADER)))
        except (ValueError, RecursionError, MemoryError):
            return False
    return isinstance(header, dict) and any(name in header for name in (*TOKENS, *IMAGES))


def _read_pickles(reader: _Reader) -> None:
    # The legacy format: magic number, protocol, machine, content (torch 2.13 serialization.py, l. 1656-1700).
    for _ in range(4):
        for _ in pickletools.genops(reader):  # type: ignore[arg-type]
            pass


def _read_directory(reader: _Reader) -> None:
    with zipfile.ZipFile(reader) as archive:
        for member in archive.infolist():
            if not _NUMBERS.fullmatch(member.filename) and member.file_size <= _LARGEST_MEMBER:
                archive.read(member)
