"""torch.distributed.checkpoint (FSDP2, torchtitan, accelerate): a folder with `.metadata` and `*.distcp` shards."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run.formats import safetensors_file, torch_file
from hnf_offline.run.formats.dcp_metadata import NAME, Item, Piece, plain_value, read_bytes, read_index
from hnf_offline.run.formats.inert_pickle import REMEDY
from hnf_offline.run.formats.names import step_in_name, step_in_path
from hnf_offline.run.formats.torch_outline import outline_of
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "dcp"
#: Where accelerate puts model and optimizer (accelerate 1.15 utils/fsdp_utils.py, l. 155-190).
_MODEL_FOLDER, _OPTIMIZER_FOLDER = "pytorch_model_fsdp_0", "optimizer_0"
#: Components of a training state that are not the model.
_OTHERS = {
    *("optimizer", "optim", "lr_scheduler", "lr_schedulers", "scheduler", "dataloader", "train_state"),
    *("rng", "rng_state", "scaler", "grad_scaler"),
}
_OPTIMIZER = re.compile(r"(?:[^.]+\.)?(?:optimizer|optim)\.(state|param_groups)\.(.+)\.([^.]+)")
_STEP = re.compile(r"(?:(?:[^.]+\.)?train_state\.)?(?:global_)?step")


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a folder with a `.metadata`, or accelerate's folder of two such folders.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else or holds no weights.

    Raises:
        InputError: when a file is missing, damaged or unsafe.

    Source: torch 2.13 distributed/checkpoint/filesystem.py, l. 69, 97, 690; formats of torchtitan and accelerate.
    """
    if not entry.is_dir():
        return None
    model = entry if (entry / NAME).is_file() else entry / _MODEL_FOLDER
    if not _is_checkpoint(model):
        if step_in_name(entry.name) is not None and any(entry.glob("*.distcp")):
            # It is written last, by one rank, when all others are done.
            raise InputError(
                f"has no {NAME}: saving it was not finished",
                path=entry,
                remedy="remove it, or copy it again from where it was written",
            )
        return None
    index = read_index(model)
    weights = _weights(index)
    if not weights:
        return None
    optimizer = entry / _OPTIMIZER_FOLDER if model != entry else model
    state = []
    if _is_checkpoint(optimizer):
        state = [item for item, kind, _, _ in _optimizer_items(read_index(optimizer)) if kind == "state"]
    step = step_in_path(entry, root)
    config = entry / "config.json"
    return Checkpoint(
        _saved_step(index) if step is None else step,
        entry,
        LAYOUT,
        files_of(model, weights.values()),
        files_of(optimizer, state) if state else (),
        config if config.is_file() else None,
    )


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU in their own type, one tensor after another.

    Returns:
        Parameter name -> tensor.
    """
    index = read_index(checkpoint.weight_files[0].parent)
    return {name: read_tensor(item) for name, item in _weights(index).items()}


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read the optimizer state on the CPU, by parameter name; settings flattened per parameter become groups.

    Returns:
        The state as saved, None where none was saved.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    state: dict[int | str, dict[str, Any]] = {}
    groups: dict[int | str, dict[str, Any]] = {}
    for item, kind, owner, key in _optimizer_items(read_index(file.parent)):
        value = read_tensor(item) if item.shape is not None else _load(item.pieces[0])
        (state if kind == "state" else groups).setdefault(owner, {})[key] = value
    listed = [groups[number] for number in sorted(owner for owner in groups if isinstance(owner, int))]
    if not listed:
        listed = list(_grouped({str(owner): group for owner, group in groups.items()}))
    if len(listed) <= 1 and not (listed and listed[0].get("params")):
        listed = [{**(listed[0] if listed else {}), "params": list(state)}]
    return torch_file.raw_optimizer({"state": state, "param_groups": listed}, file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read config.json beside the shards and the optimizer's settings, without reading a tensor.

    Returns:
        Sections "model" and "optimizer".
    """
    sections: dict[str, Any] = {}
    if checkpoint.config_file is not None:
        sections["model"] = safetensors_file.read_json(checkpoint.config_file)
    if checkpoint.optimizer_files:
        index = read_index(checkpoint.optimizer_files[0].parent)
        settings = [one for one in _optimizer_items(index) if one[1] == "param_groups"]
        values = {key: plain_value(item) for item, _, owner, key in settings if owner == settings[0][2]}
        sections["optimizer"] = {
            key: value for key, value in values.items() if value is not None and key != "params"
        }
    return sections


def _is_checkpoint(folder: Path) -> bool:
    try:
        if not (folder / NAME).is_file():  # a pipe would be waited for
            return False
        with (folder / NAME).open("rb") as file:
            return file.read(1) == b"\x80" or any(folder.glob("*.distcp"))
    except OSError:
        return False


def files_of(folder: Path, items: Iterable[Item]) -> tuple[Path, ...]:
    """List the files that some tensors are in.

    Returns:
        The description and the shards.
    """
    return folder / NAME, *sorted({piece.file for item in items for piece in item.pieces})


def _weights(index: Mapping[str, Item]) -> dict[str, Item]:
    # Parameter name -> item: what is in the component "model", else (torchtitan) every tensor of no other component.
    tensors = {
        name: item
        for name, item in index.items()
        if item.shape is not None and not set(item.path[:2] or name.split(".")[:2]) & _OTHERS
    }
    component: dict[str, Item] = {}
    for item in tensors.values():
        place = item.path.index("model") + 1 if "model" in item.path[:2] else 0
        if 0 < place < len(item.path):
            component[".".join(item.path[place:])] = item
    if component:
        return component
    if not any(item.path for item in tensors.values()) and all(name.startswith("model.") for name in tensors):
        return {name.removeprefix("model."): item for name, item in tensors.items()}
    return tensors


def _optimizer_items(index: Mapping[str, Item]) -> Iterator[tuple[Item, str, int | str, str]]:
    # (item, "state" or "param_groups", parameter or number of the group, key).
    for name, item in index.items():
        found = _OPTIMIZER.fullmatch(name)
        if found is not None:
            kind, owner, key = found.groups()
            yield item, kind, int(owner) if owner.isdecimal() else owner, key


def _grouped(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    # Parameters with the same settings are one group, as they were before they were flattened.
    alike: dict[str, list[str]] = {}
    for name, values in settings.items():
        alike.setdefault(repr(sorted(values.items(), key=lambda pair: pair[0])), []).append(name)
    for names in alike.values():
        yield {**settings[names[0]], "params": names}


def _saved_step(index: Mapping[str, Item]) -> int:
    for name, item in index.items():
        if _STEP.fullmatch(name):
            value = plain_value(item) if item.shape is None else read_tensor(item)
            try:
                return int(value)
            except (TypeError, ValueError, RuntimeError):
                continue
    return 0


def read_tensor(item: Item) -> Tensor:
    """Put a tensor together from its blocks.

    Returns:
        The tensor on the CPU, in its own type.

    Raises:
        InputError: when a block is damaged, not as described, or overlaps another.
    """
    import torch

    assert item.dtype is not None and item.shape is not None
    dtype = getattr(torch, item.dtype)
    if len(item.pieces) == 1:
        return _block(item.pieces[0], item.name, dtype)
    _check_disjoint(item)
    whole = torch.empty(item.shape, dtype=dtype)
    for piece in item.pieces:
        place = tuple(
            slice(offset, offset + size) for offset, size in zip(piece.offsets, piece.sizes, strict=True)
        )
        whole[place] = _block(piece, item.name, dtype)
    return whole


def _check_disjoint(item: Item) -> None:
    # Their sizes add up to the whole; without overlap they therefore cover it.
    import numpy as np

    low = np.array([piece.offsets for piece in item.pieces])
    high = low + np.array([piece.sizes for piece in item.pieces])
    for row in range(1, len(low)):
        overlaps = ((low[:row] < high[row]) & (low[row] < high[:row])).all(axis=1)
        if overlaps.any():
            raise InputError(f"two blocks of {item.name} overlap", path=item.pieces[row].file, remedy=REMEDY)


def _block(piece: Piece, name: str, dtype: Any) -> Tensor:
    import torch

    block = _load(piece)
    if (
        not isinstance(block, torch.Tensor)
        or block.layout != torch.strided
        or block.device.type != "cpu"
        or (block.dtype, tuple(block.shape)) != (dtype, piece.sizes)
    ):
        raise InputError(
            f"its block of {name} is not the {list(piece.sizes)} tensor that {NAME} describes",
            path=piece.file,
            remedy=REMEDY,
        )
    return block.detach()


def _load(piece: Piece) -> Any:
    import torch

    data = read_bytes(piece)
    # Before torch believes it: what the block says of itself fits into it.
    outline_of(data, piece.file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"holds at byte {piece.start} more than tensors and numbers, which only code from it could rebuild",
            path=piece.file,
            remedy="if you wrote this checkpoint yourself, save its weights as safetensors",
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError ... on damaged blocks alike
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise InputError(
            f"is damaged at byte {piece.start} ({reason})", path=piece.file, remedy=REMEDY
        ) from error
