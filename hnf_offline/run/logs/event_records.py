"""The framing of TensorBoard event files: length, check sum, data, check sum, again and again."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnf_offline.errors import InputError

#: Bytes of a record; a longer one holds a picture or a graph, and is passed over unread.
LONGEST_RECORD = 262_144
#: Bytes of a batch of records.
_BATCH = 2_000_000
#: Fewer records of about one length than this are summed byte by byte.
_FEW = 64
#: Bytes that are summed byte by byte for one file, some ten seconds; records beyond count as damaged.
_MOST_SLOW = 128_000_000


def _table() -> tuple[int, ...]:
    # CRC-32C, the polynomial of Castagnoli, bits reversed.
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _table()


@dataclass(slots=True)
class EventRecords:
    """The records of an event file in batches, with the check sums they should have.

    To iterate again goes on behind the last whole record: over those that were appended since.

    A record's length is believed only when its own check sum is right and the file is that long; after a wrong
    one nothing can be found any more. The data are not summed yet: `sound` does that for those that are wanted.

    Attributes:
        path: the file.
        lost: bytes at the end that could not be read as records, known after iterating; more may make them one.
        place: bytes that were read as records.

    Source: tensorboard 2.21.0 compat/tensorflow_stub/pywrap_tensorflow.py, PyRecordReader_New.GetNext.
    """

    path: Path
    lost: int = 0
    place: int = 0
    _slow: int = 0

    def __iter__(self) -> Iterator[list[tuple[bytes, int]]]:
        """Read batch after batch.

        Yields:
            Pairs of data and check sum.

        Raises:
            InputError: when the file cannot be opened.
        """
        try:
            size = self.path.stat().st_size
            file = self.path.open("rb")
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", path=self.path) from error
        with file:
            file.seek(self.place)
            batch: list[tuple[bytes, int]] = []
            held = 0
            while self.place < size:
                try:
                    length = _length(file.read(12), size - self.place)
                    if length is None:
                        break
                    if length > LONGEST_RECORD:
                        file.seek(length + 4, 1)
                    else:
                        data, check = file.read(length), file.read(4)
                        if len(data) < length or len(check) < 4:
                            break
                        batch.append((data, int.from_bytes(check, "little")))
                        held += length + 100
                except OSError:
                    break
                self.place += length + 16
                if held > _BATCH:
                    yield batch
                    batch, held = [], 0
            self.lost = max(0, size - self.place)
            yield batch

    def sound(self, records: Sequence[tuple[bytes, int]]) -> list[bool]:
        """Sum records and compare with the check sums they should have.

        Returns:
            Whether each is as it was written.
        """
        sums = self._check_sums([data for data, _ in records])
        return [found == check for found, (_, check) in zip(sums, records, strict=True)]

    def _check_sums(self, records: list[bytes]) -> list[int]:
        # Records of about one length side by side: byte by byte in Python takes longer than all the rest.
        sums = [-1] * len(records)
        alike: dict[int, list[int]] = {}
        for number, record in enumerate(records):
            alike.setdefault(len(record).bit_length() if len(record) >= 4 else 0, []).append(number)
        for bits, members in alike.items():
            if bits and len(members) >= _FEW:
                for number, one in zip(members, _side_by_side([records[n] for n in members]), strict=True):
                    sums[number] = one
                continue
            for number in members:
                self._slow += len(records[number])
                if self._slow <= _MOST_SLOW:
                    sums[number] = masked_crc32c(records[number])
        return sums


def _length(header: bytes, left: int) -> int | None:
    # The length that a record claims; None where it cannot be true.
    if len(header) < 12:
        return None
    length, check = struct.unpack("<QI", header)
    if _sum_of_length(header[:8]) != check or length + 16 > left:
        return None
    return int(length)


@functools.lru_cache(maxsize=4_096)
def _sum_of_length(header: bytes) -> int:
    # Records have few different lengths.
    return masked_crc32c(header)


def masked_crc32c(data: bytes) -> int:
    """Compute the check sum of event files.

    Returns:
        The masked CRC-32C.
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return _masked(crc ^ 0xFFFFFFFF)


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _side_by_side(records: Sequence[bytes]) -> list[int]:
    # Zeros in front change nothing where the sum begins at zero, so records of any length are set flush right; the
    # usual beginning, all ones, is the same as the first four bytes inverted. Records have at least four bytes.
    import numpy as np

    longest = max(map(len, records))
    columns = np.frombuffer(b"".join(record.rjust(longest, b"\0") for record in records), dtype=np.uint8)
    columns = np.ascontiguousarray(columns.reshape(len(records), longest).T)
    starts = longest - np.array([len(record) for record in records])
    for byte in range(4):
        columns[starts + byte, np.arange(len(records))] ^= 0xFF
    table = np.array(_TABLE, dtype=np.uint32)
    crc = np.zeros(len(records), dtype=np.uint32)
    for column in columns:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return [_masked(one) for one in (crc ^ 0xFFFFFFFF).tolist()]
