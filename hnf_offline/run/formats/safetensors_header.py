"""The header of a safetensors file: every claim in it held against the file, before anything believes it.

Source: huggingface/safetensors README (Format) and safetensors/src/tensor.rs (Metadata::validate, Dtype).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError
from hnf_offline.run.paths import status_of

REMEDY = "copy the file again from where it was written, or remove this checkpoint"

#: The library itself takes 100 MB; this is room for 100,000 tensors.
_LONGEST_HEADER = 16_000_000
_MOST_DIMENSIONS = 64
#: Values in one JSON text; a header has about ten a tensor.
_MOST_VALUES = 3_000_000
#: More elements than any file has bytes.
_MOST_ELEMENTS = 1 << 62

#: Bits an element.
BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


def read_header(path: Path) -> dict[str, Any]:
    """Read and check the header: length, JSON, types, shapes, and that the tensors fill the file without a gap.

    Args:
        path: a .safetensors file.

    Returns:
        Tensor name -> {"dtype", "shape", "data_offsets"}, and "__metadata__" where there is some.

    Raises:
        InputError: when the file is truncated or not safetensors.
    """
    return read_header_and_start(path)[0]


def read_header_and_start(path: Path) -> tuple[dict[str, Any], int]:
    """Read and check the header, and find where the tensors begin.

    Returns:
        What `read_header` gives, and the place of offset 0 in the file.

    Raises:
        InputError: when the file is truncated or not safetensors.
    """
    size = status_of(path).st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise InputError(
                    f"is truncated or not safetensors: {size} bytes cannot hold its header",
                    path=path,
                    remedy=REMEDY,
                )
            text = file.read(length)
        header = read_json_text(text)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"its safetensors header is not JSON ({str(error)[:100]})", path=path, remedy=REMEDY
        ) from error
    if not isinstance(header, dict):
        raise InputError("its safetensors header has no data offsets", path=path, remedy=REMEDY)
    _check_tensors(header, size - 8 - length, path)
    return header, 8 + length


def read_json_text(text: bytes) -> Any:
    """Decode JSON, unless it is made of brackets, which unfold into a hundred times their size, or of small values.

    Returns:
        What it says.

    Raises:
        ValueError: when it is not JSON, almost nothing but brackets, or millions of values.
    """
    if text.count(b",") > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES:,} values")
    if text.count(b"{") + text.count(b"[") > 10_000 + len(text) // 8:
        raise ValueError("almost nothing but brackets")
    return json.loads(text)


def _check_tensors(header: Mapping[str, Any], room: int, path: Path) -> None:
    places: list[tuple[int, int]] = []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        try:
            start, end = tensor["data_offsets"]
            shape, dtype = tensor["shape"], tensor["dtype"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"its safetensors header has no data offsets for {name[:100]!r}", path=path, remedy=REMEDY
            ) from error
        if not all(type(place) is int for place in (start, end)) or not 0 <= start <= end:
            raise InputError(
                f"its tensor {name[:100]!r} lies at {str([start, end])[:60]}", path=path, remedy=REMEDY
            )
        bits = BITS.get(dtype) if isinstance(dtype, str) else None
        if bits is None:
            raise InputError(
                f"its tensor {name[:100]!r} has the unknown type {str(dtype)[:30]!r}",
                path=path,
                remedy="save it in a type that safetensors knows, or update hnf_offline",
            )
        elements = _elements(shape)
        if elements is None or elements * bits != (end - start) * 8:
            raise InputError(
                f"its tensor {name[:100]!r} of shape {str(shape)[:60]} and type {dtype} has {end - start} bytes",
                path=path,
                remedy=REMEDY,
            )
        places.append((start, end))
    places.sort()
    last = places[-1][1] if places else 0
    if last != room:
        word = "truncated" if last > room else "longer than its header says"
        raise InputError(f"is {word}: {room} bytes of tensors instead of {last}", path=path, remedy=REMEDY)
    reached = 0
    for start, end in places:
        if start != reached:
            word = "overlap" if start < reached else "leave a gap"
            raise InputError(f"its tensors {word} at byte {start}", path=path, remedy=REMEDY)
        reached = end


def _elements(shape: Any) -> int | None:
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        return None
    elements = 1
    for length in shape:
        if type(length) is not int or length < 0:
            return None
        elements *= length
        if elements > _MOST_ELEMENTS:
            return None
    return elements
