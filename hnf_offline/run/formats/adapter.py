"""PEFT adapters (LoRA and the like): adapter_model.safetensors and adapter_config.json.

LoRA is replayed where the folder of the model that it was trained on is at hand; of the others, and without that
folder, the weights alone are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import hf_trainer, safetensors_file, torch_file
from hnf_offline.run.formats.adapter_order import in_order_of_modules, is_order_known
from hnf_offline.run.formats.names import step_in_path
from hnf_offline.run.formats.plain_settings import plain_settings
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "adapter"
CONFIG = "adapter_config.json"
#: Settings that PEFT keeps as sets and writes in an order of chance.
_SETS = (
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
)
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a folder with an adapter and no whole model.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else.

    Raises:
        InputError: when the adapter is damaged.

    Source: peft 0.21 peft_model.py (save_pretrained) and utils/constants.py: an adapter that is not called
    "default" lies in a folder of its name.
    """
    if not entry.is_dir() or _has_whole_model(entry):
        return None
    file = _weights(entry)
    if file is None:
        return None
    ordered = True
    if file.suffix == ".safetensors":
        names = safetensors_file.read_header(file).keys() - {"__metadata__"}
        ordered = is_order_known(names)
        if not names:
            raise InputError("holds no tensors", path=file, remedy="remove it or copy it again")
    else:
        torch_file.check(file)
    # Without the order of the modules nobody knows whose the numbered states are.
    optimizer = [
        entry / name for name in ("optimizer.pt", "optimizer.bin") if ordered and (entry / name).is_file()
    ]
    step = step_in_path(entry, root)
    if step is None:
        step = hf_trainer.saved_step(entry)
    config = file.with_name(CONFIG)
    return Checkpoint(
        step,
        entry,
        LAYOUT,
        (file,),
        tuple(optimizer[:1]),
        config if config.is_file() else None,
        adapter=True,
    )


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the adapter's tensors on the CPU in their own type, in the order of the model's modules.

    Returns:
        Name in the wrapped model, without the adapter's own name -> tensor.
    """
    if checkpoint.weight_files[0].suffix == ".safetensors":
        tensors = safetensors_file.load(checkpoint.weight_files, memory_map=checkpoint.memory_map)
        return {name: tensors[name] for name in in_order_of_modules(tensors)}
    # torch.save keeps the order in which the modules were.
    return torch_file.load_tensors(checkpoint.weight_files, memory_map=checkpoint.memory_map)


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read optimizer.pt on the CPU; its numbers are places among the adapter's tensors.

    Returns:
        The state as saved, None where none was saved.
    """
    return hf_trainer.load_optimizer(checkpoint)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read adapter_config.json and the settings in trainer_state.json; neither describes a whole model.

    Returns:
        Section "training", the adapter's settings under "adapter" in it.
    """
    config = {} if checkpoint.config_file is None else safetensors_file.read_json(checkpoint.config_file)
    said = plain_settings(config)
    training = dict(hf_trainer.training_settings(checkpoint.path))
    if said:
        training["adapter"] = {
            key: _in_order(value) if key in _SETS else value for key, value in said.items()
        }
    return {"training": training} if training else {}


def _in_order(names: Any) -> Any:
    return sorted(names, key=str) if isinstance(names, list | tuple) else names


def _has_whole_model(folder: Path) -> bool:
    names = ("model.safetensors", safetensors_file.INDEX, *hf_trainer.BINARY)
    return any((folder / name).is_file() for name in names)


def _weights(folder: Path) -> Path | None:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if not hf_trainer.NAME.fullmatch(folder.name):
        return None
    named = [file for name in _WEIGHTS for file in sorted(folder.glob(f"*/{name}"))]
    if len({file.parent for file in named}) > 1:
        raise InputError(
            f"holds {len(named)} adapters: {', '.join(file.parent.name for file in named[:4])}",
            path=folder,
            remedy="name the folder of one of them",
        )
    return named[0] if named else None
