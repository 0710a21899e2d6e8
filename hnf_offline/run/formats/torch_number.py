"""One number out of a file of torch.save, without the rest: how many updates an optimizer has made."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.formats.torch_outline import Storage, TensorRecord, read_outline

_LETTERS: Mapping[str, str] = {"float32": "f", "float64": "d", "int64": "q", "int32": "i"}
_MOST_STEPS = 10**15


def updates_of(path: Path) -> int | None:
    """Read the step in an optimizer's state_dict: that of its first parameter.

    Args:
        path: an optimizer.bin or optimizer.pt.

    Returns:
        The number of updates, None where the file does not tell it or cannot be read.
    """
    try:
        content = read_outline(path).content
        state = content["state"]
        first = next(iter(state.values()))["step"]
        value = _number(path, first) if isinstance(first, TensorRecord) else first
        step = int(value)
    except (InputError, KeyError, TypeError, ValueError, OverflowError, AttributeError, StopIteration):
        return None
    return step if 0 < step < _MOST_STEPS else None


def _number(path: Path, record: TensorRecord) -> float:
    storage, offset = record.arguments[:2]
    if not isinstance(storage, Storage) or type(offset) is not int or storage.dtype not in _LETTERS:
        raise ValueError("it is no number")
    letter = _LETTERS[storage.dtype]
    size = struct.calcsize(letter)
    if not 0 <= (offset + 1) * size <= storage.size:
        raise ValueError("it lies outside of its storage")
    try:
        with zipfile.ZipFile(path) as archive:
            prefix = archive.namelist()[0].split("/")[0]
            with archive.open(f"{prefix}/data/{storage.key}") as member:
                member.seek(offset * size)
                (number,) = struct.unpack(f"<{letter}", member.read(size))
    except (
        OSError,
        zipfile.BadZipFile,
        struct.error,
        IndexError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ValueError("it cannot be read") from error
    return float(number)
