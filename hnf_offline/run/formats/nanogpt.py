"""nanoGPT: `ckpt*.pt` holding model, optimizer, model_args and iter_num."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import torch_file
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "nanogpt"
_COMPILED = "_orig_mod."


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise `ckpt*.pt`; the step is its iter_num.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the file is something else.

    Source: karpathy/nanoGPT@3adf61e train.py, l. 276-286.
    """
    if not entry.is_file() or entry.suffix != ".pt" or not entry.name.startswith("ckpt"):
        return None
    content = _content(entry)
    optimizer = (entry,) if isinstance(content.get("optimizer"), Mapping) else ()
    return Checkpoint(int(content["iter_num"]), entry, LAYOUT, (entry,), optimizer, None)


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU, without the prefix that torch.compile adds.

    Returns:
        Parameter name -> tensor.
    """
    file = checkpoint.weight_files[0]
    tensors = torch_file.tensors_of(_content(file)["model"], file)
    return {name.removeprefix(_COMPILED): tensor for name, tensor in tensors.items()}


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read the optimizer state on the CPU.

    Returns:
        The state as saved, None where none was saved.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    return torch_file.raw_optimizer(_content(file)["optimizer"], file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read model_args as the built-in GPT's configuration, and the training script's own settings.

    Returns:
        Sections "model", "optimizer", "training".
    """
    content = _content(checkpoint.weight_files[0])
    arguments = content.get("model_args")
    sections: dict[str, Any] = {"training": dict(content.get("config") or {})}
    if isinstance(arguments, Mapping):
        sections["model"] = {"model_type": "gpt", "norm": "pre", **arguments}
    if isinstance(content.get("optimizer"), Mapping):
        groups = content["optimizer"].get("param_groups") or [{}]
        sections["optimizer"] = {key: value for key, value in groups[0].items() if key != "params"}
    return sections


def _content(file: Path) -> Mapping[str, Any]:
    content = torch_file.load(file)
    if not isinstance(content, Mapping) or "model" not in content or "iter_num" not in content:
        raise InputError(
            "is not a nanoGPT checkpoint: it lacks model or iter_num",
            path=file,
            remedy="save it as nanoGPT does, or convert the weights to safetensors",
        )
    return content
