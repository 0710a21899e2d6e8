"""Flat token files (nanoGPT's uint16 .bin): where rows begin, and reading them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.manifest import Manifest
from hnf_offline.run.numpy_archive import READ_FAULTS, map_array
from hnf_offline.run.records import Batches

if TYPE_CHECKING:
    import numpy as np

_STARTS = "save the places where the rows begin as whole numbers [steps, rows] or [rows] with numpy.save"


def flat_shape(file: Path, manifest: Manifest) -> tuple[int, ...]:
    """Give the shape of the rows in a flat token file: one after another, or where the starts say.

    Returns:
        [rows, length], or [steps, rows, length] where the starts have two dimensions.

    Raises:
        InputError: when the length of a row is unknown, or a row lies outside of the file.
    """
    if manifest.length is None:
        raise InputError(
            "is a flat token file without row length",
            path=file,
            remedy="add [batches] length = ... to run.toml",
        )
    if manifest.starts is not None:
        starts = _starts(manifest.starts)
        tokens = file.stat().st_size // 2
        first, last = int(starts.min()), int(starts.max())
        if first < 0 or last + manifest.length >= tokens:
            outside = first if first < 0 else last
            raise InputError(
                f"has a row at {outside}, and {file.name} has {tokens} tokens "
                f"(a row needs {manifest.length} and the one after)",
                path=manifest.starts,
                remedy="name the token file these places are in, and the length of a row",
            )
        return (*starts.shape, manifest.length)
    rows = file.stat().st_size // 2 // manifest.length
    if rows == 0:
        raise InputError(f"is shorter than one row of {manifest.length} tokens", path=file)
    return rows, manifest.length


def read_spans(batches: Batches, rows: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Read rows of a flat token file by their starts, each with the token after it.

    Returns:
        i64 [n, length + 1].

    Raises:
        InputError: when the files cannot be read, or have changed.
    """
    import numpy as np

    assert batches.starts is not None
    starts = _starts(batches.starts).reshape(-1)
    try:
        flat = np.memmap(batches.path, dtype="<u2", mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", path=batches.path) from error
    if starts.size != batches.rows:
        raise InputError(f"has {starts.size} rows, and had {batches.rows}", path=batches.starts)
    spans = np.empty((len(rows), batches.length + 1), dtype=np.int64)
    for place, row in enumerate(rows):
        start = int(starts[row])
        if not 0 <= start < flat.size - batches.length:
            raise InputError(f"has row {row} at {start}, outside of the tokens", path=batches.starts)
        spans[place] = flat[start : start + batches.length + 1]
    return spans


def _starts(file: Path) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
    # Where the rows begin: [steps, rows] or [rows], mapped and not read.

    try:
        starts = map_array(file)
    except READ_FAULTS as error:
        raise InputError(f"is not a numpy array ({str(error)[:200]})", path=file, remedy=_STARTS) from error
    if starts.dtype.kind not in {"i", "u"}:
        raise InputError("is not an array of whole numbers", path=file, remedy=_STARTS)
    if starts.ndim not in {1, 2} or starts.size == 0:
        raise InputError(f"has shape {list(starts.shape)}", path=file, remedy=_STARTS)
    return starts
