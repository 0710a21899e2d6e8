"""Hugging Face Trainer: `checkpoint-<step>/` with safetensors or pytorch_model.bin, and optimizer.pt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import safetensors_file, torch_file
from hnf_offline.run.formats.names import step_in_path
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "hf_trainer"
_NAME = re.compile(r"checkpoint-(\d+)")


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise `checkpoint-<step>/`, and any model folder with a pytorch_model.bin.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else.

    Raises:
        InputError: when the folder is named as a checkpoint and has no readable weights.

    Source: transformers 5.23.0 src/transformers/trainer.py, l. 245-251 and 3340-3410.
    """
    if not entry.is_dir():
        return None
    named = _NAME.fullmatch(entry.name)
    binary = (entry / "pytorch_model.bin").is_file() or (entry / "pytorch_model.bin.index.json").is_file()
    if named is None and not binary:
        return None
    weights = safetensors_file.weight_files(entry) or _binary_files(entry)
    if not weights:
        if named is None or not any(entry.iterdir()):
            return None
        adapter = (entry / "adapter_model.safetensors").is_file() or (entry / "adapter_model.bin").is_file()
        raise InputError(
            "holds an adapter, not the whole model" if adapter else "has no model weights",
            path=entry,
            remedy="merge the adapter into the model and save it"
            if adapter
            else "remove it or copy it again",
        )
    state = safetensors_file.read_json(entry / "trainer_state.json")
    step = int(named.group(1)) if named else step_in_path(entry, root)
    if step is None:
        step = int(state.get("global_step") or 0)
    optimizer = [entry / name for name in ("optimizer.pt", "optimizer.bin") if (entry / name).is_file()]
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
        return safetensors_file.load(checkpoint.weight_files)
    return torch_file.load_tensors(checkpoint.weight_files)


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read optimizer.pt on the CPU.

    Returns:
        The state as saved, None where none was saved.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    return torch_file.raw_optimizer(torch_file.load(file), file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read config.json and the settings in trainer_state.json.

    Returns:
        Sections "model" and "training".
    """
    state = safetensors_file.read_json(checkpoint.path / "trainer_state.json")
    sections: dict[str, Any] = {}
    if checkpoint.config_file is not None:
        sections["model"] = safetensors_file.read_json(checkpoint.config_file)
    settings = {key: state[key] for key in _SETTINGS if state.get(key) is not None}
    return {**sections, "training": settings} if settings else sections


#: What trainer_state.json says of the settings; the rest of it is progress.
_SETTINGS = ("train_batch_size", "max_steps", "num_train_epochs", "logging_steps", "save_steps", "eval_steps")


def _binary_files(folder: Path) -> tuple[Path, ...]:
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        files = tuple(folder / shard for shard in safetensors_file.read_index(index))
    else:
        files = (folder / "pytorch_model.bin",) if (folder / "pytorch_model.bin").is_file() else ()
    for file in files:
        torch_file.check(file)
    return files
