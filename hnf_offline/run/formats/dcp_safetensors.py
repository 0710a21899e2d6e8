"""Safetensors shards of torch.distributed.checkpoint: every rank's blocks in shard-<r>-model-<i>-of-<n>.safetensors.

No file says how many ranks there were: that the shards of the last ones are missing shows only where blocks of others
leave a gap, or in shapes that differ from other checkpoints.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import safetensors_file
from hnf_offline.run.formats.names import step_in_path
from hnf_offline.run.formats.safetensors_header import read_header
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "dcp_safetensors"
_SHARD = re.compile(r"shard-\d+-model-\d+-of-\d+\.safetensors")
_PUT_TOGETHER = ("model.safetensors", safetensors_file.INDEX)
_PLACES, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_REMEDY = "copy the shards of all ranks into the folder"


@dataclass(frozen=True, slots=True)
class _Block:
    file: Path
    dtype: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a folder of shards that were not put together; where they were, the whole file is read instead.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else.

    Raises:
        InputError: when a shard is damaged or missing.

    Source: torch 2.13 distributed/checkpoint/_hf_utils.py, l. 17-19 and 58-75; filesystem.py, l. 455-470.
    """
    if not entry.is_dir() or any((entry / name).is_file() for name in _PUT_TOGETHER):
        return None
    files = [file for file in sorted(entry.glob("shard-*.safetensors")) if _SHARD.fullmatch(file.name)]
    if not files:
        return None
    for name, blocks in _blocks(files).items():
        _whole(name, blocks)
    step = step_in_path(entry, root)
    config = entry / "config.json"
    return Checkpoint(
        0 if step is None else step, entry, LAYOUT, tuple(files), (), config if config.is_file() else None
    )


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU in their own type, one shard after another.

    Returns:
        Parameter name -> tensor.
    """
    import torch

    blocks = _blocks(checkpoint.weight_files)
    weights: dict[str, Tensor] = {}
    for file in checkpoint.weight_files:
        for name, tensor in safetensors_file.load([file], memory_map=checkpoint.memory_map).items():
            if name not in weights:
                weights[name] = torch.empty(_whole(name, blocks[name]), dtype=tensor.dtype)
            for block in blocks[name]:
                if block.file == file:
                    weights[name][_place(block)] = tensor
    return weights


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Say that there is no optimizer state: this kind holds weights.

    Returns:
        None.
    """
    return None


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read config.json.

    Returns:
        Section "model".
    """
    if checkpoint.config_file is None:
        return {}
    return {"model": safetensors_file.read_json(checkpoint.config_file)}


def _blocks(files: Sequence[Path]) -> dict[str, list[_Block]]:
    # Parameter name -> its blocks that hold numbers.
    found: dict[str, list[_Block]] = {}
    for file in files:
        header = read_header(file)
        try:
            places = json.loads((header.get("__metadata__") or {}).get(_PLACES, "{}"))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                sizes = tuple(entry["shape"])
                offsets = tuple(places[name][_OFFSETS]) if name in places else (0,) * len(sizes)
                if len(offsets) != len(sizes) or any(type(at) is not int or at < 0 for at in offsets):
                    raise ValueError(f"the place of {name} is none")
                found.setdefault(name, []).append(_Block(file, entry["dtype"], offsets, sizes))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise InputError(
                f"does not say where its blocks belong ({reason})", path=file, remedy=_REMEDY
            ) from error
    return {
        name: [one for one in blocks if 0 not in one.sizes] or blocks[:1] for name, blocks in found.items()
    }


def _whole(name: str, blocks: Sequence[_Block]) -> tuple[int, ...]:
    # The shape that the blocks fill, without a gap and without overlap.
    first = blocks[0]
    if any(len(one.sizes) != len(first.sizes) or one.dtype != first.dtype for one in blocks):
        raise InputError(
            f"its {name} is of another kind than in other shards", path=first.file, remedy=_REMEDY
        )
    ends = [[at + size for at, size in zip(one.offsets, one.sizes, strict=True)] for one in blocks]
    shape = tuple(max(end[axis] for end in ends) for axis in range(len(first.sizes)))
    if sum(math.prod(one.sizes) for one in blocks) != math.prod(shape) or _overlap(blocks):
        reason = f"its {name} is not whole: the blocks of some ranks are missing"
        raise InputError(reason, path=first.file, remedy=_REMEDY)
    return shape


def _overlap(blocks: Sequence[_Block]) -> bool:
    import numpy as np

    low = np.array([one.offsets for one in blocks])
    high = low + np.array([one.sizes for one in blocks])
    return any(
        bool(((low[:row] < high[row]) & (low[row] < high[:row])).all(axis=1).any())
        for row in range(1, len(low))
    )


def _place(block: _Block) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(block.offsets, block.sizes, strict=True))
