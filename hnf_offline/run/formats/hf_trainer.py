"""Hugging Face Trainer and accelerate: a folder of weights with optimizer.pt, or FSDP's whole state dicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import safetensors_file, torch_file
from hnf_offline.run.formats.names import step_in_path
from hnf_offline.run.formats.saved_optimizer import raw_optimizer
from hnf_offline.run.formats.torch_number import updates_of
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "hf_trainer"
NAME = re.compile(r"checkpoint-(\d+)")
#: accelerate's own names count the saves (accelerate 1.15 accelerator.py, save_state): the step is the optimizer's.
_COUNTED = re.compile(r"checkpoint_\d+")
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
#: Whole state dicts of PyTorch: of the model, and as FSDP gathers them (accelerate 1.15 utils/fsdp_utils.py, l. 155).
_BINARY_INDEX = "pytorch_model.bin.index.json"
BINARY = ("pytorch_model.bin", "pytorch_model_fsdp.bin", _BINARY_INDEX)
#: What trainer_state.json says of the settings; the rest of it is progress.
_SETTINGS = ("train_batch_size", "max_steps", "num_train_epochs", "logging_steps", "save_steps", "eval_steps")


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise `checkpoint-<step>/`, a folder of weights with optimizer.pt, and one with a pytorch_model.bin.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else.

    Raises:
        InputError: when the folder is named as a checkpoint and has no readable weights.

    Source: transformers 5.23.0 src/transformers/trainer.py, l. 245-251 and 3340-3410; accelerate 1.15
    checkpointing.py (save_accelerator_state) and utils/constants.py, l. 20-35.
    """
    if not entry.is_dir():
        return None
    named = NAME.fullmatch(entry.name)
    optimizer = [entry / name for name in _OPTIMIZERS if (entry / name).is_file()]
    binary = any((entry / name).is_file() for name in BINARY)
    local = any(entry.glob("pytorch_model_fsdp*_rank*.bin")) if named or optimizer or not binary else False
    if named is None and not binary and not optimizer and not local:
        return None
    weights = safetensors_file.weight_files(entry) or _binary_files(entry)
    if not weights and local:
        raise InputError(
            "holds the shards of single FSDP ranks, which only the same number of ranks can put together",
            path=entry,
            remedy="save with fsdp_state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT",
        )
    if not weights:
        if named is None or not any(entry.iterdir()):
            return None
        raise InputError("has no model weights", path=entry, remedy="remove it or copy it again")
    step = int(named.group(1)) if named else step_in_path(entry, root)
    if _COUNTED.fullmatch(entry.name) and optimizer:
        step = updates_of(optimizer[0]) or step
    if step is None:
        step = saved_step(entry)
    config = entry / "config.json"
    return Checkpoint(
        step, entry, LAYOUT, weights, tuple(optimizer[:1]), config if config.is_file() else None
    )


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU in their own type.

    Returns:
        Parameter name -> tensor.
    """
    if checkpoint.weight_files[0].suffix == ".safetensors":
        return safetensors_file.load(checkpoint.weight_files, memory_map=checkpoint.memory_map)
    return torch_file.load_tensors(checkpoint.weight_files, memory_map=checkpoint.memory_map)


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read optimizer.pt or optimizer.bin on the CPU.

    Returns:
        The state as saved, None where none was saved.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    return raw_optimizer(torch_file.load(file, memory_map=checkpoint.memory_map), file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read config.json and the settings in trainer_state.json.

    Returns:
        Sections "model" and "training".
    """
    sections: dict[str, Any] = {}
    if checkpoint.config_file is not None:
        sections["model"] = safetensors_file.read_json(checkpoint.config_file)
    settings = training_settings(checkpoint.path)
    return {**sections, "training": settings} if settings else sections


def training_settings(folder: Path) -> dict[str, Any]:
    """Read the settings in a checkpoint's trainer_state.json.

    Returns:
        Those that are there.
    """
    state = safetensors_file.read_json(folder / "trainer_state.json")
    return {key: state[key] for key in _SETTINGS if state.get(key) is not None}


def saved_step(folder: Path) -> int:
    """Read the step from a trainer_state.json.

    Returns:
        The step, 0 where there is none.
    """
    step = safetensors_file.read_json(folder / "trainer_state.json").get("global_step")
    return step if type(step) is int and 0 <= step < 10**15 else 0


def _binary_files(folder: Path) -> tuple[Path, ...]:
    index = folder / _BINARY_INDEX
    if index.is_file():
        files = tuple(folder / shard for shard in safetensors_file.read_index(index))
    else:
        files = tuple(folder / name for name in BINARY[:2] if (folder / name).is_file())[:1]
    for file in files:
        torch_file.check(file)
    return files
