"""Any file of torch.save with a state dict: alone, or beside optimizer and step as training loops save them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import torch_contents as contents
from hnf_offline.run.formats import torch_file
from hnf_offline.run.formats.names import epoch_in_name, number_in_name, step_in_name, step_in_path
from hnf_offline.run.formats.saved_optimizer import raw_optimizers
from hnf_offline.run.formats.torch_outline import read_outline
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "torch_state"
_PART = re.compile(
    r"(?:.*[-_.])?(?:mp_)?(?:rank|shard|part)[-_.]?\d+(?:[-_.].*)?|.*\d+-of-\d+.*", re.IGNORECASE
)
_MODEL_WORD = re.compile(r"model|net|weights?|state", re.IGNORECASE)


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a torch file that holds a state dict, itself or under a usual name.

    The step is that in the file's name, else in a folder's, else what was saved with the weights, else the epoch
    in the name.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the entry is something else.

    Raises:
        InputError: when it holds one part of a model, or more than tensors.
    """
    outline = contents.look(entry)
    if outline is None:
        return None
    stem = contents.stem_of(entry) or ""
    found = (step_in_name(stem), number_in_name(stem), step_in_path(entry, root))
    step = next((one for one in found if one is not None), None)
    key = contents.model_key(outline.content, known=step is not None)
    if key is None:
        return None
    if _PART.fullmatch(stem):
        raise InputError(
            "holds one part of a model that was saved in parts",
            path=entry,
            remedy="join the parts with the program that wrote them, and save one state_dict",
        )
    contents.refuse_code(outline, entry)
    if step is None:
        step = _step_inside(outline.content, stem)
    inside = contents.optimizer_key(outline.content) is not None
    optimizer = (entry,) if inside else _beside(entry)
    return Checkpoint(step or 0, entry, LAYOUT, (entry,), optimizer, None)


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU in their own type, without what wrappers add to their names.

    Returns:
        Parameter name -> tensor.
    """
    file = checkpoint.weight_files[0]
    content = torch_file.load(file, memory_map=checkpoint.memory_map)
    key = contents.model_key(content, known=True)
    return contents.without_wrappers(torch_file.tensors_of(content[key] if key else content, file))


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read the optimizer state on the CPU; several optimizers are read as one.

    Returns:
        The state as saved, None where none was saved.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    content = torch_file.load(file, memory_map=checkpoint.memory_map)
    key = contents.optimizer_key(content)
    return raw_optimizers(content[key] if key else content, file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read what was saved beside the weights: the model's sizes, the loop's settings, the optimizer's.

    Returns:
        Sections "model", "optimizer", "training".
    """
    sections: dict[str, Any] = {}
    for file in dict.fromkeys(checkpoint.files):
        content = read_outline(file).content
        key = contents.model_key(content, known=True)
        sections = {**contents.settings(content, content[key] if key else content), **sections}
    return sections


def _step_inside(content: Any, stem: str) -> int | None:
    step = contents.saved_step(content)
    only_epoch = isinstance(content, Mapping) and not any(key in content for key in contents.STEP_KEYS)
    epoch = epoch_in_name(stem)
    return epoch if epoch is not None and only_epoch else step


def _beside(entry: Path) -> tuple[Path, ...]:
    # model_500.pt and optimizer_500.pt, or model_500.optimizer.pt.
    stem = contents.stem_of(entry) or ""
    ending = entry.name.removeprefix(stem)
    words = ("optimizer", "optim", "opt")
    names = [_MODEL_WORD.sub(word, stem, count=1) for word in words if _MODEL_WORD.search(stem)]
    names += [f"{stem}{mark}{word}" for word in words for mark in (".", "_", "-")]
    for name in names:
        file = entry.with_name(name + ending)
        try:
            if (
                file != entry
                and file.is_file()
                and contents.optimizer_key(read_outline(file).content) is not None
            ):
                return (file,)
        except InputError:
            continue
    return ()
