"""nanoGPT: `ckpt.pt` holding model, optimizer, model_args and iter_num."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.run.formats import torch_contents as contents
from hnf_offline.run.formats import torch_file
from hnf_offline.run.formats.plain_settings import plain_settings
from hnf_offline.run.formats.saved_optimizer import raw_optimizer
from hnf_offline.run.formats.torch_outline import read_outline
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "nanogpt"


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a .pt file with model, model_args and iter_num, which is the step.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the file is something else.

    Source: karpathy/nanoGPT@3adf61e train.py, l. 276-286.
    """
    if entry.suffix != ".pt":
        return None
    outline = contents.look(entry)
    if outline is None or not isinstance(outline.content, Mapping):
        return None
    step = contents.whole_number(outline.content.get("iter_num"))
    if step is None or contents.model_key({"model": outline.content.get("model")}, known=False) is None:
        return None
    contents.refuse_code(outline, entry)
    optimizer = (entry,) if contents.optimizer_key(outline.content) == "optimizer" else ()
    return Checkpoint(step, entry, LAYOUT, (entry,), optimizer, None)


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU, without the prefix that torch.compile adds.

    Returns:
        Parameter name -> tensor.
    """
    file = checkpoint.weight_files[0]
    content = torch_file.load(file, memory_map=checkpoint.memory_map)
    return contents.without_wrappers(torch_file.tensors_of(content["model"], file))


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read the optimizer state on the CPU.

    Returns:
        The state as saved, None where none was saved.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    return raw_optimizer(torch_file.load(file, memory_map=checkpoint.memory_map)["optimizer"], file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read model_args as the built-in GPT's configuration, and the training script's own settings.

    Returns:
        Sections "model", "optimizer", "training".
    """
    content = read_outline(checkpoint.weight_files[0]).content
    sections = contents.settings(content, content["model"])
    arguments = plain_settings(content.get("model_args"))
    if arguments:
        sections["model"] = {"model_type": "gpt", "norm": "pre", **arguments}
    sections["training"] = plain_settings(content.get("config"))
    return sections
