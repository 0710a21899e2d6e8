"""The arrays of .npz and .npy: every claim of a header held against the file before anything believes it."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

#: What reading a damaged archive raises.
READ_FAULTS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)

_MOST_ARRAYS = 1_000
_LONGEST_HEADER = 10_000
#: Bytes that an array may have whatever its size in the archive; ...
_SMALL = 1_000_000_000
#: ... a larger one is not packed tighter than this. Tokens are packed two to five times, zeros a thousand times.
_PACKING = 50

_Header = tuple[tuple[int, ...], "np.dtype[Any]"]


def arrays_of(file: Path) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    """Read the headers of an archive.

    Returns:
        Name, shape and type of every array.

    Raises:
        ValueError: when one is damaged, holds objects, or claims more than is there; `READ_FAULTS` has the rest.
    """
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if len(members) > _MOST_ARRAYS:
            raise ValueError(f"it has {len(members)} arrays")
        found = []
        for member in members:
            with archive.open(member) as opened:
                name = member.filename.removesuffix(".npy")
                found.append((name, *_header(opened, member, name)))
        return found


@contextmanager
def open_array(file: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """Open one array, to be read from behind its header.

    Args:
        file: the archive.
        name: the array.

    Yields:
        The opened member, and the array's shape and type.
    """
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as opened:
            yield opened, *_header(opened, member, name)


def map_array(file: Path) -> np.ndarray[Any, Any]:
    """Map the array of a .npy file into memory; nothing of it is read but the header.

    Returns:
        The array.
    """
    import numpy as np

    with file.open("rb") as opened:
        shape, kind = _described(opened, file.stat().st_size, file.stem)
        return np.memmap(opened, dtype=kind, mode="r", offset=opened.tell(), shape=shape)


def _header(opened: IO[bytes], member: zipfile.ZipInfo, name: str) -> _Header:
    if member.file_size > max(_SMALL, _PACKING * member.compress_size):
        raise ValueError(f"array {name[:60]!r} unpacks to {member.file_size} bytes")
    return _described(opened, member.file_size, name)


def _described(opened: IO[bytes], stored: int, name: str) -> _Header:
    # Source: numpy lib/format.py: magic, version, length of the header in two or four bytes, header.
    from numpy.lib import format as npy

    version = npy.read_magic(opened)
    size = opened.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(size, "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"array {name[:60]!r} has a header of {length} bytes")
    whole = io.BytesIO(size + opened.read(length))
    try:
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, kind = read(whole)
    except Exception as error:  # numpy parses it as Python, which fails in many ways
        raise ValueError(f"the header of array {name[:60]!r} is damaged ({type(error).__name__})") from error
    if kind.hasobject or (fortran and len(shape) > 1):
        raise ValueError(f"array {name[:60]!r} holds objects or is stored by columns")
    shape = tuple(int(n) for n in shape)
    if any(n < 0 for n in shape) or math.prod(shape) * kind.itemsize > stored:
        raise ValueError(
            f"array {name[:60]!r} of shape {str(list(shape))[:60]} is larger than what is stored"
        )
    return shape, kind
