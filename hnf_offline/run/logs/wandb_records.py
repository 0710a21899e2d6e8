"""The framing of `.wandb` files: a header, then the blocks of a LevelDB log."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hnf_offline.errors import InputError

#: How a file begins: a name, a magic number and a version.
HEADER = b":W&B\xe1\xbe\x00"
#: Bytes of a record; a longer one holds no history.
LONGEST_RECORD = 16_000_000
#: Bytes of a file; what follows is not read.
LONGEST_FILE = 4_000_000_000
_BLOCK = 32_768
_CHUNK = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(slots=True)
class WandbRecords:
    """The whole records of a `.wandb` file; iterate once.

    What does not fit its check sum is passed over up to the next block, where reading goes on.

    Attributes:
        path: the file.
        damaged: places at which something was passed over, known after iterating.

    Source: wandb/wandb@0552ec8 wandb/sdk/internal/datastore.py l.1-18, scan_record, scan_data.
    """

    path: Path
    damaged: int = 0

    def __iter__(self) -> Iterator[bytes]:
        """Read record after record.

        Yields:
            Their data.

        Raises:
            InputError: when the file cannot be opened or does not begin as one.
        """
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", path=self.path) from error
        with file:
            if file.read(len(HEADER)) != HEADER:
                raise InputError(
                    "does not begin as a .wandb file", path=self.path, remedy="copy it again from the run"
                )
            parts: list[bytes] | None = None
            position = len(HEADER)
            while True:
                try:
                    block = file.read(_BLOCK - position % _BLOCK)
                except OSError:
                    self.damaged += 1
                    return
                if not block:
                    # A record whose end was never written.
                    self.damaged += parts is not None
                    return
                position += len(block)
                if position > LONGEST_FILE:
                    self.damaged += 1
                    return
                for kind, data in self._chunks(block, last=bool(position % _BLOCK)):
                    if kind == _FULL:
                        self.damaged += parts is not None
                        parts = None
                        yield data
                    elif kind == _FIRST:
                        self.damaged += parts is not None
                        parts = [data]
                    elif parts is not None:
                        parts.append(data)
                        if kind == _LAST:
                            yield b"".join(parts)
                            parts = None
                        elif len(parts) * _BLOCK > LONGEST_RECORD:
                            self.damaged += 1
                            parts = None

    def _chunks(self, block: bytes, last: bool) -> Iterator[tuple[int, bytes]]:
        place = 0
        while place + _CHUNK <= len(block):
            check, length, kind = struct.unpack_from("<IHB", block, place)
            if not kind and not length and not check:
                # Zeros to the end of the block: nothing was written here.
                return
            data = block[place + _CHUNK : place + _CHUNK + length]
            if (
                kind not in {_FULL, _FIRST, _MIDDLE, _LAST}
                or len(data) < length
                or zlib.crc32(data, zlib.crc32(bytes((kind,)))) != check
            ):
                self.damaged += 1
                return
            yield kind, data
            place += _CHUNK + length
        if last and place < len(block):
            self.damaged += 1
