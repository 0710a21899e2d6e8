"""What a file of torch.save holds, told from its pickle alone: no tensor is read, nothing of it is run.

The zip format keeps the pickle as `<name>/data.pkl` and each storage as `<name>/data/<key>`, uncompressed; the
legacy format is four pickles (magic number, protocol, machine, content), a list of keys, and the storages.
Source: torch 2.13 serialization.py, l. 1656-1950 (legacy) and 1110-1140, 1990-2080 (zip).
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from hnf_offline.errors import InputError
from hnf_offline.run.formats.inert_pickle import ITEM_SIZES, Record, Sealed, decode_plain, decode_stored
from hnf_offline.run.paths import status_of

_REMEDY = "copy the file again from where it was written, or remove this checkpoint"
#: A tensor takes about 150 bytes of the pickle.
_LONGEST_PICKLE = 100_000_000
_LONGEST_DIRECTORY = 50_000_000
_MOST_NAMES = 1_000
_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PARTS = 3

#: Element types of the storage classes that torch.save still names (torch 2.13 storage.py).
_STORAGES: Mapping[str, str] = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16"},
    **{"BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16"},
    **{"CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
    **{"QInt8Storage": "int8", "QUInt8Storage": "uint8", "QInt32Storage": "int32"},
    **{"QUInt4x2Storage": "uint8", "QUInt2x4Storage": "uint8"},
}


class TensorRecord(Record):
    """A tensor: storage, offset, shape, strides."""

    __slots__ = ()


class WrappedRecord(Record):
    """A parameter, or a tensor with attributes."""

    __slots__ = ()


class ForeignRecord(Record):
    """An object of a class that describes no tensor; whatever the pickle does to it is forgotten."""

    __slots__ = ()

    def __call__(self, *_arguments: Any) -> ForeignRecord:  # noqa: D102 (what it makes is as foreign)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Forget an entry."""

    def extend(self, values: Any) -> None:
        """Forget entries."""


class _ByteArray(Record):
    """A bytearray of bytes; one of a number is as many zeros, however many that is."""

    __slots__ = ()

    def __new__(cls, *arguments: Any) -> _ByteArray:
        """Keep the bytes it would have been made of.

        Returns:
            The record.

        Raises:
            ValueError: when it would be made of a number.
        """
        if any(isinstance(argument, int) for argument in arguments):
            raise ValueError("it asks for memory by a number")
        return cast("_ByteArray", super().__new__(cls, *arguments))


class _Dictionary(dict[Any, Any], metaclass=Sealed):
    """An OrderedDict without its attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers in the file.

    Attributes:
        key: its name.
        size: its bytes.
        dtype: the type of its elements.
    """

    key: str
    size: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Outline:
    """The content of a file without its numbers.

    Attributes:
        content: what was saved; tensors and foreign objects are records.
        foreign: names of the classes and functions that describe no tensor.
    """

    content: Any
    foreign: tuple[str, ...]


#: What a name gets that describes tensors or plain values (torch 2.13 _weights_only_unpickler.py).
_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dictionary,
    ("torch", "Size"): tuple,
    **{
        ("torch._utils", f"_rebuild_{name}"): TensorRecord
        for name in ("tensor", "tensor_v2", "tensor_v3", "sparse_tensor", "qtensor", "meta_tensor_no_storage")
    },
    ("torch._utils", "_rebuild_parameter"): WrappedRecord,
    ("torch._utils", "_rebuild_parameter_with_state"): WrappedRecord,
    ("torch._tensor", "_rebuild_from_type_v2"): WrappedRecord,
    ("torch.serialization", "_get_layout"): Record,
    ("torch", "device"): Record,
    ("torch", "Tensor"): Record,
    ("torch.nn.parameter", "Parameter"): Record,
    ("_codecs", "encode"): Record,
    ("collections", "Counter"): Record,
    **{(module, name): Record for module in ("builtins", "__builtin__") for name in ("set", "complex")},
    ("builtins", "bytearray"): _ByteArray,
    ("__builtin__", "bytearray"): _ByteArray,
    **{("torch", name): name for name in ITEM_SIZES},
    **{("torch", name): name for name in _STORAGES},
    ("torch.storage", "UntypedStorage"): "UntypedStorage",
}


def read_outline(path: Path) -> Outline:
    """Read what a file of torch.save holds, and check that what it claims to hold fits into it.

    Args:
        path: a file in the zip or the legacy format.

    Returns:
        Its content without numbers; it is not to be changed.

    Raises:
        InputError: when the file is damaged, or of another kind.
    """
    state = status_of(path)
    return _outline(path, state.st_mtime_ns, state.st_size)


def outline_of(data: bytes, path: Path) -> Outline:
    """Read what a part of a file that torch.save wrote holds, checked as `read_outline` does.

    Args:
        data: the part.
        path: the file it is of, for error messages.

    Returns:
        Its content without numbers.

    Raises:
        InputError: when it is damaged, or of another kind.
    """
    file = io.BytesIO(data)
    if data[:4] == b"PK\x03\x04":
        return _zipped(file, len(data), path)
    if data[:1] == b"\x80":
        return _legacy(file, len(data), path)
    raise InputError("is empty, truncated, or not a torch file", path=path, remedy=_REMEDY)


# One layout after another looks at the same file.
@lru_cache(maxsize=1)
def _outline(path: Path, _changed: int, _size: int) -> Outline:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _zipped(file, size, path)
            if start[:1] == b"\x80":
                return _legacy(file, size, path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    raise InputError("is empty, truncated, or not a torch file", path=path, remedy=_REMEDY)


def is_tensor(value: Any) -> bool:
    """Tell what stands for a tensor.

    Returns:
        True for tensors and parameters.
    """
    return isinstance(value, TensorRecord | WrappedRecord)


def _zipped(file: BinaryIO, size: int, path: Path) -> Outline:
    try:
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            prefix = members[0].filename.split("/")[0] if members else ""
            stored = {member.filename: member for member in members}
            if f"{prefix}/constants.pkl" in stored:
                raise InputError(
                    "is a TorchScript program, which is code",
                    path=path,
                    remedy="save the state_dict of the module instead",
                )
            # torch.save does not compress; what says otherwise could unfold into any size.
            claimed = sum(member.file_size for member in members)
            if claimed > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("it is compressed")
            pickled = stored.get(f"{prefix}/data.pkl")
            if pickled is None or pickled.file_size > _LONGEST_PICKLE:
                raise ValueError("it has no data.pkl, or an endless one")
            data = archive.read(pickled)
    except InputError:
        raise
    except Exception as error:  # zipfile raises BadZipFile, struct.error, ValueError ... on damaged files
        raise InputError(
            f"is empty, truncated, or not a torch file ({str(error)[:100]})", path=path, remedy=_REMEDY
        ) from error

    def there(storage: Storage) -> bool:
        member = stored.get(f"{prefix}/data/{storage.key}")
        return member is not None and storage.size <= member.file_size

    return _decode(data, path, there)


def _legacy(file: BinaryIO, size: int, path: Path) -> Outline:
    bounded = _Bounded(file, path)
    values = [decode_plain(bounded.pickle(), path) for _ in range(_LEGACY_PARTS)]
    if values[0] != _MAGIC:
        raise InputError("is not a torch file", path=path, remedy=_REMEDY)
    data = bounded.pickle()
    room = size - bounded.read_bytes
    found: dict[str, int] = {}
    total = 0

    def there(storage: Storage) -> bool:
        nonlocal total
        total += max(0, storage.size - found.get(storage.key, 0))
        found[storage.key] = max(storage.size, found.get(storage.key, 0))
        return total <= room

    return _decode(data, path, there)


def _decode(data: bytes, path: Path, there: Callable[[Storage], bool]) -> Outline:
    foreign: dict[str, Any] = {}
    missing: list[str] = []

    def answer(module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        whole = f"{module}.{name}"[:200]
        if whole not in foreign:
            if len(foreign) >= _MOST_NAMES:
                raise ValueError("it asks for too many names")
            foreign[whole] = Sealed("Foreign", (ForeignRecord,), {"__slots__": ()})
        return foreign[whole]

    def store(identity: Any) -> Any:
        # ("storage", class, key, device, elements), and in the legacy format a view of it.
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise ValueError("it holds an object that is no storage")
        kind, elements = str(identity[1]), identity[4]
        dtype = _STORAGES.get(kind, kind)
        item = ITEM_SIZES.get(dtype)
        if item is None or type(elements) is not int or elements < 0:
            raise ValueError(f"it holds a storage of {kind[:60]}")
        storage = Storage(str(identity[2]), elements * item, dtype)
        if not there(storage):
            missing.append(storage.key)
        return storage

    content = decode_stored(data, path, answer, store)
    if missing:
        raise InputError(
            f"is truncated: it lacks {len(missing)} of the storages it names, such as {missing[0][:60]}",
            path=path,
            remedy=_REMEDY,
        )
    return Outline(content, tuple(foreign))


def _check_directory(file: BinaryIO, size: int) -> None:
    # zipfile reads the whole directory into memory, however long the file's end says it is.
    file.seek(max(0, size - 65_600))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise ValueError("its end is missing")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    if length == 0xFFFFFFFF and tail[max(0, end - 20) : end][:4] == b"PK\x06\x07":
        file.seek(int.from_bytes(tail[end - 12 : end - 4], "little"))
        record = file.read(56)
        length = int.from_bytes(record[40:48], "little")
    if length > _LONGEST_DIRECTORY:
        raise ValueError("its directory is endless")
    file.seek(0)


class _Bounded:
    """Reads one pickle after another, and not more than a file's pickles can have."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._seen = io.BytesIO()
        self.read_bytes = 0

    def read(self, length: int) -> bytes:
        """Read some bytes.

        Returns:
            The bytes, fewer at the end of the file.

        Raises:
            ValueError: when the pickles are too long.
        """
        if self.read_bytes + length > _LONGEST_PICKLE:
            raise ValueError("it has an endless pickle")
        data = self._file.read(length)
        self.read_bytes += len(data)
        self._seen.write(data)
        return data

    def readline(self) -> bytes:
        """Read a line.

        Returns:
            The line, cut where it is no name of a class.
        """
        data = self._file.readline(10_000)
        self.read_bytes += len(data)
        self._seen.write(data)
        return data

    def pickle(self) -> bytes:
        """Read one pickle to its end.

        Returns:
            Its bytes.

        Raises:
            InputError: when the file ends before.
        """
        self._seen = io.BytesIO()
        try:
            for _ in pickletools.genops(self):  # type: ignore[arg-type]
                pass
        except Exception as error:  # genops raises whatever a wrong argument raises
            raise InputError(
                f"is empty, truncated, or not a torch file ({str(error)[:100]})",
                path=self._path,
                remedy=_REMEDY,
            ) from error
        return self._seen.getvalue()
