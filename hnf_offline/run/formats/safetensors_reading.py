"""Tensors of a safetensors file by plain reads, one after another, for disks on which mapped files are slow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hnf_offline.errors import InputError
from hnf_offline.run.formats.safetensors_header import REMEDY, read_header_and_start

if TYPE_CHECKING:
    from torch import Tensor

#: Types of the format -> torch's names of them (safetensors bindings/python/py_src/safetensors/torch.py, _TYPES).
_TYPES: Mapping[str, str] = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; each is read straight into the memory it keeps.

    Args:
        path: a .safetensors file.

    Returns:
        Tensor name -> tensor, in the order of the header.

    Raises:
        InputError: when the file is damaged, or has a type that this torch lacks.
    """
    import torch

    header, first = read_header_and_start(path)
    tensors: dict[str, Tensor] = {}
    try:
        with path.open("rb", buffering=0) as file:
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                dtype = getattr(torch, _TYPES.get(entry["dtype"], ""), None)
                if dtype is None:
                    raise InputError(
                        f"its tensor {name!r} has the type {entry['dtype']}, which this torch lacks",
                        path=path,
                        remedy="install a newer torch",
                    )
                start, end = entry["data_offsets"]
                if start == end:
                    tensors[name] = torch.empty(entry["shape"], dtype=dtype)
                    continue
                data = bytearray(end - start)
                file.seek(first + start)
                _fill(file, memoryview(data), path)
                tensors[name] = torch.frombuffer(data, dtype=dtype).reshape(entry["shape"])
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    return tensors


def _fill(file: object, room: memoryview, path: Path) -> None:
    read = file.readinto  # type: ignore[attr-defined]
    done = 0
    while done < len(room):
        # One system call reads at most 2 GiB on Linux.
        count = read(room[done : done + (1 << 30)])
        if not count:
            raise InputError("is truncated", path=path, remedy=REMEDY)
        done += count
