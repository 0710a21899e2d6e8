"""The `.metadata` of torch.distributed.checkpoint: which tensors and values there are, and where, checked."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats.inert_pickle import (
    ITEM_SIZES,
    REMEDY,
    BytesRecord,
    Metadata,
    PropertiesRecord,
    Record,
    TensorRecord,
    decode,
)
from hnf_offline.run.paths import inside, status_of
from hnf_offline.run.remote import read_range

NAME = ".metadata"
_LARGEST = 512 * 2**20
_LARGEST_VALUE = 2**20


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored block of a tensor, or one stored value.

    Attributes:
        offsets: where the block begins in its tensor.
        sizes: its shape.
        file: the file that holds it.
        start: where in the file.
        length: how many bytes.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor or value of the checkpoint.

    Attributes:
        name: its full name.
        path: the keys that lead to it in the saved dictionary; empty where the file does not say.
        dtype: type of the elements, None where it is no tensor.
        shape: shape of the whole tensor, None where it is none.
        pieces: its blocks.
    """

    name: str
    path: tuple[str, ...]
    dtype: str | None
    shape: tuple[int, ...] | None
    pieces: tuple[Piece, ...]


def read_index(folder: Path) -> Mapping[str, Item]:
    """Read which tensors and values a checkpoint holds, and where, checked against its files.

    Args:
        folder: a folder with a `.metadata`.

    Returns:
        Full name -> item.

    Raises:
        InputError: when `.metadata` is damaged, or its files are missing, too short, or outside of the folder.

    Source: torch 2.13 distributed/checkpoint/metadata.py, filesystem.py (`_StorageInfo`, `.metadata`).
    """
    file = folder / NAME
    now = status_of(file)
    if now.st_size > _LARGEST:
        raise InputError(f"has {now.st_size} bytes, too many for a description", path=file, remedy=REMEDY)
    return _read_index(folder, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=2)
def _read_index(folder: Path, _changed: int, _size: int) -> Mapping[str, Item]:
    # A checkpoint's weights, optimizer and settings are read one after another, from one decoding.
    file = folder / NAME
    content = decode(file.read_bytes(), file)
    if not isinstance(content, Metadata):
        raise InputError("is not the description of a checkpoint", path=file, remedy=REMEDY)
    try:
        described = _fields(content)
        stored = _stored(described["storage_data"], folder)
        paths = described.get("planner_data")
        return {
            name: _item(name, entry, paths if isinstance(paths, dict) else {}, stored)
            for name, entry in described["state_dict_metadata"].items()
            if isinstance(name, str)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = (
            error.args[0] if isinstance(error, ValueError) and error.args else "its records are incomplete"
        )
        raise InputError(f"is damaged ({reason})", path=file, remedy=REMEDY) from error


def plain_value(item: Item) -> Any:
    """Read a small stored value (a number, text, a tuple of them) without torch.

    Args:
        item: an item that is no tensor.

    Returns:
        The value; None where it is more than that.
    """
    if item.shape is not None or item.pieces[0].length > _LARGEST_VALUE:
        return None
    piece = item.pieces[0]
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(piece))) as archive:
            member = next(one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
            if member.file_size > _LARGEST_VALUE:
                return None
            value = decode(archive.read(member), piece.file)
    except (
        Exception
    ):  # zipfile raises BadZipFile, OverflowError, NotImplementedError ... on damaged bytes alike
        return None
    return None if isinstance(value, Record) else value


def read_bytes(piece: Piece) -> bytes:
    """Read one stored block's bytes.

    Returns:
        As many bytes as the description says.

    Raises:
        InputError: when the file ends before.
    """
    try:
        data = read_range(piece.file, piece.start, piece.length)
        if data is None:
            with piece.file.open("rb") as file:
                file.seek(piece.start)
                data = file.read(piece.length)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=piece.file, remedy=REMEDY) from error
    if len(data) != piece.length:
        raise InputError("is truncated", path=piece.file, remedy=REMEDY)
    return data


def _fields(record: Any) -> Mapping[str, Any]:
    if not isinstance(record, Record) or not isinstance(record.state, dict):
        raise ValueError("a record has no fields")
    return record.state


def _stored(storage: Any, folder: Path) -> Mapping[tuple[str, tuple[int, ...] | None], Piece]:
    # (name, offsets in the tensor) -> file, start and length; offsets are None for values.
    sizes: dict[str, int] = {}
    found = {}
    for key, info in storage.items():
        name, offsets = _fields(key)["fqn"], _fields(key).get("offset")
        where = _fields(info)
        relative, start, length = where["relative_path"], where["offset"], where["length"]
        if where.get("transform_descriptors"):
            raise ValueError(f"{name} is stored compressed, which is not read")
        if not isinstance(relative, str):
            raise ValueError(f"the file of {name} is no name")
        if relative not in sizes:
            sizes[relative] = _size(folder, relative)
        (start,), (length,) = _whole((start,)), _whole((length,))
        if start + length > sizes[relative]:
            raise InputError(
                f"is truncated: {name} ends at byte {start + length}, the file has {sizes[relative]}",
                path=folder / relative,
                remedy=REMEDY,
            )
        place = None if offsets is None else _whole(offsets)
        found[name, place] = Piece(place or (), (), folder / relative, start, length)
    return found


def _size(folder: Path, relative: str) -> int:
    file = inside(folder, relative, named_by=folder / NAME)
    if not file.is_file():
        raise InputError(
            f"names {relative}, which is not there",
            path=folder / NAME,
            remedy="copy the files of all ranks into the folder",
        )
    return file.stat().st_size


def _item(name: str, entry: Any, paths: Mapping[Any, Any], stored: Mapping[tuple[str, Any], Piece]) -> Item:
    keys = paths.get(name)
    path = tuple(str(key) for key in keys) if isinstance(keys, tuple) else ()
    if isinstance(entry, BytesRecord):
        if (name, None) not in stored:
            raise ValueError(f"{name} is not stored")
        return Item(name, path, None, None, (stored[name, None],))
    if not isinstance(entry, TensorRecord):
        raise ValueError(f"{name} is neither a tensor nor a value")
    fields = _fields(entry)
    properties = fields["properties"]
    dtype = properties.state[0] if isinstance(properties, PropertiesRecord) else None
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise ValueError(f"{name} has elements of no known type")
    shape = _whole(fields["size"])
    return Item(name, path, dtype, shape, tuple(_pieces(name, shape, dtype, fields["chunks"], stored)))


def _pieces(
    name: str, shape: tuple[int, ...], dtype: str, chunks: Any, stored: Mapping[tuple[str, Any], Piece]
) -> Iterator[Piece]:
    covered = 0
    for chunk in chunks:
        offsets, sizes = _whole(_fields(chunk)["offsets"]), _whole(_fields(chunk)["sizes"])
        fits = len(offsets) == len(sizes) == len(shape) and all(
            offset + size <= whole for offset, size, whole in zip(offsets, sizes, shape, strict=True)
        )
        if not fits:
            raise ValueError(f"a block of {name} lies outside of its shape {list(shape)}")
        count = math.prod(sizes)
        if count == 0 and math.prod(shape) > 0:
            continue  # a rank that had no part of a short tensor
        covered += count
        if (name, offsets) not in stored:
            raise ValueError(f"the block of {name} at {list(offsets)} is not stored")
        block = stored[name, offsets]
        if count * ITEM_SIZES[dtype] > block.length:
            raise ValueError(f"{block.length} bytes cannot hold the block of {name} at {list(offsets)}")
        yield Piece(offsets, sizes, block.file, block.start, block.length)
    if covered != math.prod(shape):
        raise ValueError(f"{covered} of {math.prod(shape)} elements of {name} are stored")


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple | list) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a size or place is no whole number")
    return tuple(numbers)
