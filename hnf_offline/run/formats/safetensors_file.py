"""Safetensors files: checked by their header alone, read without running code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.paths import inside

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"

#: The library itself refuses headers above 100 MB (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
_LONGEST_HEADER = 100_000_000
_REMEDY = "copy the file again from where it was written, or remove this checkpoint"


def read_header(path: Path) -> dict[str, Any]:
    """Read and check the header: length, JSON, and that the data ends where the file ends.

    Args:
        path: a .safetensors file.

    Returns:
        Tensor name -> {"dtype", "shape", "data_offsets"}, and "__metadata__" where there is some.

    Raises:
        InputError: when the file is truncated or not safetensors.

    Source: https://github.com/huggingface/safetensors (Format).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise InputError(
                    f"is truncated or not safetensors: {size} bytes cannot hold its header",
                    path=path,
                    remedy=_REMEDY,
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"its safetensors header is not JSON ({error})", path=path, remedy=_REMEDY
        ) from error
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        data_end = max(ends, default=0) + 8 + length
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise InputError("its safetensors header has no data offsets", path=path, remedy=_REMEDY) from error
    if data_end != size:
        word = "truncated" if data_end > size else "longer than its header says"
        raise InputError(f"is {word}: {size} bytes instead of {data_end}", path=path, remedy=_REMEDY)
    return dict(header)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the text metadata of a safetensors file.

    Returns:
        Key -> text, empty where there is none.
    """
    metadata = read_header(path).get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def read_index(index: Path) -> dict[str, list[str]]:
    """Read which shard holds which tensors, refusing shards outside of the folder.

    Args:
        index: a `*.index.json` with a `weight_map`.

    Returns:
        Shard file name -> tensor names, in the order of the index.

    Raises:
        InputError: when the index is not readable, names a missing shard or leads outside of the folder.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = [(str(name), str(shard)) for name, shard in weight_map.items()]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=index) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError("is not an index with a weight_map", path=index, remedy=_REMEDY) from error
    tensors: dict[str, list[str]] = {}
    for name, shard in pairs:
        tensors.setdefault(shard, []).append(name)
    for shard in tensors:
        if not inside(index.parent, shard, named_by=index).is_file():
            raise InputError(f"names the shard {shard}, which is not there", path=index, remedy=_REMEDY)
    if not tensors:
        raise InputError("its weight_map is empty", path=index, remedy=_REMEDY)
    return tensors


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Find the safetensors weights of a folder: one file, or an index and its shards, all headers checked.

    Returns:
        The files, empty where the folder has no safetensors weights.

    Raises:
        InputError: when a file is damaged, or a shard or one of its tensors is missing.
    """
    index = folder / INDEX
    if index.is_file():
        shards = read_index(index)
        for shard, names in shards.items():
            absent = set(names) - set(read_header(folder / shard))
            if absent:
                raise InputError(
                    f"lacks {len(absent)} tensors that the index promises, such as {min(absent)}",
                    path=folder / shard,
                    remedy=_REMEDY,
                )
        return tuple(folder / shard for shard in shards)
    single = folder / "model.safetensors"
    if not single.is_file():
        others = [file for file in sorted(folder.glob("*.safetensors")) if holds_weights(file)]
        shards_without_index = [file for file in others if "-of-" in file.stem]
        if shards_without_index:
            raise InputError(
                f"has shards but no {INDEX}",
                path=folder,
                remedy="copy the index from where the checkpoint was written",
            )
        if len(others) != 1:
            return ()
        single = others[0]
    if len(read_header(single)) == 0:
        raise InputError("holds no tensors", path=single, remedy=_REMEDY)
    return (single,)


def holds_weights(file: Path) -> bool:
    """Tell weights from what lies beside them, by name.

    Returns:
        False for optimizer state, adapters, batches, random states and training state.
    """
    others = (
        "optim", "adapter", "batch", "replay", "scheduler", "rng", "random", "train_state", "tokens", "data",
    )  # fmt: skip
    return not any(word in file.stem.lower() for word in others)


def load(files: Iterable[Path]) -> dict[str, Tensor]:
    """Load all tensors of some safetensors files on the CPU, in their own types.

    Returns:
        Tensor name -> tensor.

    Raises:
        InputError: when a file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(str(file), device="cpu"))
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"cannot be read as safetensors ({error})", path=file, remedy=_REMEDY) from error
    return tensors


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a small JSON object that lies beside weights.

    Returns:
        The object; empty where the file is absent, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > 50_000_000:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
