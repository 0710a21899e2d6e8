"""Lightning: `epoch=0-step=20.ckpt`, `last.ckpt`, holding state_dict, optimizer_states and hyper_parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.run.formats import torch_contents as contents
from hnf_offline.run.formats import torch_file
from hnf_offline.run.formats.saved_optimizer import raw_optimizers
from hnf_offline.run.formats.torch_outline import read_outline
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "lightning"
_VERSION = "pytorch-lightning_version"


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a file with a state_dict and Lightning's version; the step is its global_step.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the file is something else.

    Source: lightning 2.6.6 pytorch/trainer/connectors/checkpoint_connector.py, l. 415 (dump_checkpoint).
    """
    if entry.suffix not in contents.SUFFIXES:
        return None
    outline = contents.look(entry)
    content = None if outline is None else outline.content
    if outline is None or not isinstance(content, Mapping) or _VERSION not in content:
        return None
    step = contents.whole_number(content.get("global_step"))
    if step is None or contents.model_key({"state_dict": content.get("state_dict")}, known=False) is None:
        return None
    contents.refuse_code(outline, entry)
    optimizer = (entry,) if contents.optimizer_key(_states(content)) is not None else ()
    return Checkpoint(step, entry, LAYOUT, (entry,), optimizer, None)


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU, named as in the LightningModule (so with the name of the attribute before).

    Returns:
        Parameter name -> tensor.
    """
    file = checkpoint.weight_files[0]
    content = torch_file.load(file, memory_map=checkpoint.memory_map)
    return torch_file.tensors_of(content["state_dict"], file)


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read the optimizer state on the CPU, numbered in the order of the module's parameters.

    Returns:
        The state as saved, of all optimizers as one; None where none was saved (`save_weights_only`).
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    content = torch_file.load(file, memory_map=checkpoint.memory_map)
    return raw_optimizers(content["optimizer_states"], file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read hyper_parameters, and the first optimizer's settings.

    Returns:
        Sections "model" (where the hyper-parameters have the built-in GPT's sizes), "optimizer", "training".
    """
    content = read_outline(checkpoint.weight_files[0]).content
    said = {"hyper_parameters": content.get("hyper_parameters"), **_states(content)}
    return contents.settings(said, content["state_dict"])


def _states(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"optimizer_states": content.get("optimizer_states")}
