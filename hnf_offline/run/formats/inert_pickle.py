"""Pickles that describe checkpoints, decoded into inert records: the only place that unpickles.

The opcodes are checked against a list first; then every name the pickle asks for is answered from a table whose
entries are plain types and sealed records of this file, so nothing of torch, of the standard library or of the
pickle itself is ever called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run.formats.pickle_nesting import Nesting

REMEDY = "copy the checkpoint again from where it was written, or remove it"

#: What describing tensors needs; no opcode that calls by other ways, shares objects or fills memory by itself.
_OPCODES = frozenset({
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"),
})

#: What plain values need; nothing among them calls or even names anything.
_PLAIN_OPCODES = _OPCODES - {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"}
#: What files of torch.save need besides: storages stand for themselves, Python 2 wrote text as bytes.
_STORED_OPCODES = _OPCODES | {"BINPERSID", "SHORT_BINSTRING", "BINSTRING"}

#: Bytes an element, of the types a checkpoint may name.
ITEM_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    "complex128": 16,
}


class Sealed(type):
    """A class that a pickle cannot change."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets {name} of {cls.__name__}")


class Record(metaclass=Sealed):
    """Keeps what a pickle says of an object, and does nothing with it."""

    __slots__ = ("arguments", "state")
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Record:
        """Keep what the object would have been made of.

        Returns:
            The record.
        """
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Metadata(Record):
    """The whole description."""

    __slots__ = ()


class TensorRecord(Record):
    """A tensor: properties, size and chunks."""

    __slots__ = ()


class BytesRecord(Record):
    """A value that is no tensor."""

    __slots__ = ()


class ChunkRecord(Record):
    """Place and shape of one block of a tensor."""

    __slots__ = ()


class PropertiesRecord(Record):
    """Element type and layout of a tensor."""

    __slots__ = ()


class KeyRecord(Record):
    """Name and place of what is stored."""

    __slots__ = ()


class StorageRecord(Record):
    """File, start and length of what is stored."""

    __slots__ = ()


_DESCRIPTION = "torch.distributed.checkpoint.metadata"
_MEGATRON = "megatron.core.dist_checkpointing.strategies"
_OLD_DESCRIPTION = "torch.distributed._shard.sharded_tensor.metadata"
#: Every name a `.metadata` may ask for, and what it gets.
_ANSWERS: Mapping[tuple[str, str], Any] = {
    (_DESCRIPTION, "Metadata"): Metadata,
    (_DESCRIPTION, "TensorStorageMetadata"): TensorRecord,
    (_DESCRIPTION, "BytesStorageMetadata"): BytesRecord,
    (_DESCRIPTION, "ChunkStorageMetadata"): ChunkRecord,
    (_DESCRIPTION, "TensorProperties"): PropertiesRecord,
    (_DESCRIPTION, "MetadataIndex"): KeyRecord,
    (_DESCRIPTION, "StorageMeta"): Record,
    (_DESCRIPTION, "_MEM_FORMAT_ENCODING"): Record,
    (_OLD_DESCRIPTION, "TensorProperties"): PropertiesRecord,
    (_OLD_DESCRIPTION, "MEM_FORMAT_ENCODING"): Record,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): StorageRecord,
    # Megatron-LM's own kind of description, and the plans of its ranks beside it.
    (f"{_MEGATRON}.torch", "MCoreMetadata"): Metadata,
    (f"{_MEGATRON}.torch", "MCoreSavePlan"): Record,
    **{
        ("torch.distributed.checkpoint.planner", kind): Record
        for kind in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")
    },
    ("torch.serialization", "_get_layout"): Record,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
    **{
        (module, kind): Record
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    **{("torch", name): name for name in ITEM_SIZES},
}


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that describes no tensor."""


#: (module, name) -> a record class or plain type that stands for it.
Answer = Callable[[str, str], Any]
#: What a pickle says of an object outside of it -> what stands for it.
Store = Callable[[Any], Any]


class _Decoder(pickle.Unpickler):
    """Answers names from the table; persistent objects are refused by the base class."""

    def __init__(self, data: bytes, answer: Answer | None = None, store: Store | None = None) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._answer, self._store = answer, store

    def persistent_load(self, identity: Any) -> Any:
        """Give what stands for an object that is stored outside of the pickle.

        Returns:
            What the reader of the file says.

        Raises:
            _Refused: if the file has no such objects.
        """
        if self._store is None:
            raise _Refused("an object outside of the pickle")
        return self._store(identity)

    def find_class(self, module: str, name: str) -> Any:
        """Give what stands for a name, and refuse every name that is not in the table.

        Returns:
            A record class, a plain type, or the name of an element type.

        Raises:
            _Refused: if the name is not in the table.
        """
        if self._answer is not None:
            return self._answer(module, name)
        if (module, name) not in _ANSWERS:
            raise _Refused(f"{module}.{name}")
        return _ANSWERS[module, name]


def decode(data: bytes, path: Path) -> Any:
    """Decode a pickle of plain values and of what describes a checkpoint's tensors; no code of it is run.

    Args:
        data: the pickle.
        path: the file it is from, for error messages.

    Returns:
        Numbers, text, containers, and records.

    Raises:
        InputError: when the bytes are damaged.
        UnsafeFileError: when the pickle asks for anything else.
    """
    return _decode(data, path, _OPCODES)


def decode_plain(data: bytes, path: Path) -> Any:
    """Decode a pickle of numbers, text and containers that names nothing at all.

    Args:
        data: the pickle.
        path: the file it is from, for error messages.

    Returns:
        Numbers, text and containers.

    Raises:
        InputError: when the bytes are damaged.
        UnsafeFileError: when the pickle asks for anything else.
    """
    return _decode(data, path, _PLAIN_OPCODES)


def decode_stored(data: bytes, path: Path, answer: Answer, store: Store) -> Any:
    """Decode the pickle inside a file of torch.save into inert stand-ins; no code of it is run.

    Args:
        data: the pickle.
        path: the file it is from, for error messages.
        answer: gives what stands for a name: a `Record` class or a plain type that no argument can hurt.
        store: gives what stands for a storage.

    Returns:
        Numbers, text, containers, and what stands for everything else.

    Raises:
        InputError: when the bytes are damaged.
        UnsafeFileError: when the pickle does what describing tensors does not need.
    """
    return _decode(data, path, _STORED_OPCODES, answer, store)


def _decode(
    data: bytes,
    path: Path,
    opcodes: frozenset[str],
    answer: Answer | None = None,
    store: Store | None = None,
) -> Any:
    try:
        _check_opcodes(data, opcodes)
        return _Decoder(data, answer, store).load()
    except _Refused as error:
        raise UnsafeFileError(
            f"asks for {error}, which describes no tensor; nothing of it was run",
            path=path,
            remedy="if you wrote this checkpoint yourself, save its weights as safetensors",
        ) from error
    except Exception as error:  # the decoder raises whatever a wrong argument raises
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise InputError(f"is damaged ({reason})", path=path, remedy=REMEDY) from error


def _check_opcodes(data: bytes, allowed: frozenset[str]) -> None:
    nesting = Nesting()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in allowed:
            raise _Refused(f"opcode {opcode.name}")
        nesting.take(opcode.name, argument)
        # A memo is a table as long as its highest number, whatever was put there.
        if opcode.name in {"BINPUT", "LONG_BINPUT"} and isinstance(argument, int) and argument > count:
            raise _Refused(f"memo {argument}")
