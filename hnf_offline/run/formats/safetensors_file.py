"""Safetensors files: checked by their header alone, read without running code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats.safetensors_header import REMEDY as _REMEDY
from hnf_offline.run.formats.safetensors_header import read_header as read_header  # noqa: PLC0414 (given on)
from hnf_offline.run.formats.safetensors_header import read_json_text
from hnf_offline.run.formats.safetensors_reading import read_tensors
from hnf_offline.run.paths import inside, leads_out

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"

_LARGEST_JSON = 50_000_000


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
        whole = index.stat().st_size <= _LARGEST_JSON
        weight_map = read_json_text(index.read_bytes() if whole else b"")["weight_map"]
        pairs = [(str(name), str(shard)) for name, shard in weight_map.items()]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=index) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError("is not an index with a weight_map", path=index, remedy=_REMEDY) from error
    tensors: dict[str, list[str]] = {}
    for name, shard in pairs:
        if shard.endswith(".json"):
            raise InputError(f"names {shard} as a shard, which is an index", path=index, remedy=_REMEDY)
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


def load(files: Iterable[Path], *, memory_map: bool = True) -> dict[str, Tensor]:
    """Load all tensors of some safetensors files on the CPU, in their own types.

    Args:
        files: the files.
        memory_map: map them into memory; False reads them, one tensor after another.

    Returns:
        Tensor name -> tensor.

    Raises:
        InputError: when a file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        if not memory_map:
            tensors.update(read_tensors(file))
            continue
        read_header(file)
        try:
            tensors.update(load_file(str(file), device="cpu"))
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"cannot be read as safetensors ({error})", path=file, remedy=_REMEDY) from error
    return tensors


def read_json(path: Path, *, run: Path | None = None) -> Mapping[str, Any]:
    """Read a small JSON object that lies beside weights.

    Args:
        path: the file.
        run: the run directory that the file is of; a link out of it is not followed.

    Returns:
        The object; empty where the file is absent, too large, or not a JSON object.
    """
    try:
        # A pipe would be waited for.
        if not path.is_file() or (run is not None and leads_out(path, run)):
            return {}
        if path.stat().st_size > _LARGEST_JSON:
            return {}
        content = read_json_text(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
