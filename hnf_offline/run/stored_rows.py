"""Rows of one array of a file of batches, read by their numbers: the rest of the file is passed over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.numpy_archive import READ_FAULTS, open_array

if TYPE_CHECKING:
    import numpy as np

    Rows = np.ndarray[Any, np.dtype[Any]]

#: Names that arrays of rows to replay are looked for under: of tokens, and of images.
TOKENS, IMAGES = ("input_ids", "tokens"), ("pixel_values",)


def stored_rows(file: Path, name: str, rows: Sequence[int], height: int, remedy: str) -> Rows:
    """Read rows of an array.

    Args:
        file: .safetensors or .npz.
        name: of the array.
        rows: row numbers, in the order wanted.
        height: rows there are; an array of batches has fewer along its first dimension.
        remedy: what to do where it cannot be read.

    Returns:
        [rows, numbers of a row]: int64, or float32 (float64 where so stored).

    Raises:
        InputError: if they cannot be read.
    """
    try:
        return (_member if file.suffix == ".npz" else _slices)(file, name, rows, height)
    except READ_FAULTS as error:
        raise InputError(
            f"its array {name!r} cannot be read ({str(error)[:200]})", path=file, remedy=remedy
        ) from error


def flat_rows(file: Path, rows: Sequence[int], height: int, length: int, remedy: str) -> Rows:
    """Read rows of a flat file of 16-bit tokens.

    Returns:
        [rows, length], int64.

    Raises:
        InputError: if they cannot be read.
    """
    import numpy as np

    try:
        flat = np.memmap(file, dtype="<u2", mode="r")[: height * length]
        return flat.reshape(height, length)[list(rows)].astype(np.int64)
    except READ_FAULTS as error:
        raise InputError(
            f"its tokens cannot be read ({str(error)[:200]})", path=file, remedy=remedy
        ) from error


def _kept(numbers: Rows) -> Rows:
    import numpy as np

    if numbers.dtype.kind != "f":
        return numbers.astype(np.int64)
    return numbers.astype(np.float64 if numbers.dtype.itemsize == 8 else np.float32)


def _member(file: Path, name: str, rows: Sequence[int], height: int) -> Rows:
    # Read rows of one array of a .npz, passing over the others without keeping them.
    import numpy as np

    with open_array(file, name) as (member, shape, kind):
        width = math.prod(shape) // height
        row_bytes = width * kind.itemsize
        start = member.tell()
        read: dict[int, Any] = {}
        for row in sorted(set(rows)):
            member.seek(start + row * row_bytes)
            data = member.read(row_bytes)
            if len(data) != row_bytes:
                raise EOFError(f"it ends inside row {row}")
            read[row] = _kept(np.frombuffer(data, dtype=kind))
    return np.stack([read[row] for row in rows]) if rows else np.empty((0, width), dtype=np.int64)


def _slices(file: Path, name: str, rows: Sequence[int], height: int) -> Rows:
    # Read rows of one tensor of a safetensors file, each by its own slice.
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        archive: Any = safe_open(str(file), framework="np")
    except SafetensorError as error:  # its reader of JSON is stricter than Python's
        raise ValueError(str(error)) from error
    with archive:
        try:
            stored = archive.get_slice(name)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        shape = stored.get_shape()
        if len(shape) and shape[0] == height:
            parts = [np.asarray(stored[row : row + 1]).reshape(-1) for row in rows]
        else:
            batch = height // shape[0]
            parts = [
                np.asarray(stored[row // batch : row // batch + 1]).reshape(batch, -1)[row % batch]
                for row in rows
            ]
    return _kept(np.stack(parts)) if parts else np.empty((0, math.prod(shape) // height), dtype=np.int64)
