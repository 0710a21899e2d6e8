"""What lies in a file of torch.save: weights, optimizer, step and settings under the names that loops give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hnf_offline.errors import InputError
from hnf_offline.run.formats import torch_file
from hnf_offline.run.formats.names import epoch_in_name, number_in_name, step_in_name
from hnf_offline.run.formats.plain_settings import plain_settings
from hnf_offline.run.formats.safetensors_file import holds_weights
from hnf_offline.run.formats.torch_outline import Outline, is_tensor, read_outline

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
#: Best first: a trainer's own word before one that a part of a model could have.
MODEL_KEYS = (
    *("model_state_dict", "state_dict", "model_state", "model", "net_state_dict", "network", "net"),
    *("module", "weights", "params"),
)
OPTIMIZER_KEYS = (
    *("optimizer_state_dict", "optimizer", "optimizer_states", "optimizers", "optimizer_state"),
    *("optim_state_dict", "optim", "opt_state_dict", "opt"),
)
STEP_KEYS = ("global_step", "step", "iter_num", "iteration", "iter", "steps", "num_steps", "num_updates")
EPOCH_KEYS = ("epoch", "epochs", "current_epoch")
SETTINGS_KEYS = ("model_args", "model_config", "config", "hyper_parameters", "hparams", "args")
#: nanoGPT's words for a model; what has all five describes the built-in GPT.
_GPT_NAME = "transformer.wte.weight"
_GPT_SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")

#: What folders of weights call them, and what lies beside weights: looked at as parts of their folder only.
_PARTS = re.compile(
    r"pytorch_model.*|.*_model_states|.*_optim_states|model_optim_rng|distrib_optim|common|consolidated.*"
    r"|training_args|scaler|sampler.*|dl_state_dict.*|grad_?scaler.*|lr_sched.*|opt|opt[-_\d].*|.*[-_.]opt"
    r"|(?:.*[-_.])?ema(?:[-_.\d].*)?|train|val|test"
)
_NAMED = re.compile(r"(?:ckpt|checkpoint|model|last|best|final|latest|epoch|weights).*", re.IGNORECASE)
_WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")
_LARGEST_STEP = 10**15


def look(entry: Path) -> Outline | None:
    """Look into a file that may be a checkpoint.

    Args:
        entry: a file or folder of the run.

    Returns:
        What it holds, None where its name or its first bytes say that it is something else.

    Raises:
        InputError: when it is called as a checkpoint is, and damaged.
    """
    stem = stem_of(entry)
    if stem is None or not holds_weights(entry) or _PARTS.fullmatch(stem.lower()) or not entry.is_file():
        return None
    numbers = (step_in_name(stem), number_in_name(stem), epoch_in_name(stem))
    named = _NAMED.fullmatch(stem) is not None or any(number is not None for number in numbers)
    try:
        with entry.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=entry) from error
    # Flat token files end in .bin too.
    if not named and (entry.suffix == ".bin" or (start != b"PK\x03\x04" and start[:1] != b"\x80")):
        return None
    return read_outline(entry)


def stem_of(entry: Path) -> str | None:
    """Read the name of a torch file without what says that it is one.

    Returns:
        `model_500` of `model_500.pth.tar`; None where the file is called as another kind.
    """
    name = entry.name.removesuffix(".tar")
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    return None if suffix is None or name == suffix else name.removesuffix(suffix)


def refuse_code(outline: Outline, path: Path) -> None:
    """Let torch say whether it reads what describes no tensor; if not, the file is refused.

    Raises:
        UnsafeFileError: when the file holds objects that only code from it could rebuild; it names the first.
    """
    if outline.foreign:
        torch_file.load(path)


def model_key(content: Any, *, known: bool) -> str | None:
    """Find the weights in what was saved.

    Args:
        content: what was saved, in outline or whole.
        known: whether the file is called as weights are; otherwise its names have to look like parameters.

    Returns:
        The key of the weights, "" where the content itself is the weights, None where there are none.
    """
    if not isinstance(content, Mapping):
        return None
    for key in MODEL_KEYS:
        if _is_state_dict(content.get(key)):
            return key
    if "param_groups" in content or not _is_state_dict(content):
        return None
    like = any(isinstance(key, str) and ("." in key or key in {"weight", "bias"}) for key in content)
    return "" if known or like else None


def optimizer_key(content: Any) -> str | None:
    """Find the optimizer's state_dict, or a list of them, in what was saved.

    Returns:
        Its key, "" where the content itself is one, None where there is none.
    """
    if not isinstance(content, Mapping):
        return None
    if _is_optimizer(content):
        return ""
    for key in OPTIMIZER_KEYS:
        value = content.get(key)
        if _is_optimizer(value) or (
            isinstance(value, list | tuple) and value and all(_is_optimizer(one) for one in value)
        ):
            return key
    return None


def saved_step(content: Any) -> int | None:
    """Read the step that was saved with the weights; the epoch where that is all there is.

    Returns:
        The number, None where none was saved.
    """
    if not isinstance(content, Mapping):
        return None
    found = (whole_number(content.get(key)) for key in (*STEP_KEYS, *EPOCH_KEYS))
    return next((number for number in found if number is not None), None)


def whole_number(value: Any) -> int | None:
    """Take a number of steps.

    Returns:
        The number, None where it is none or no training has so many.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value) if abs(value) < _LARGEST_STEP else None
    return value if type(value) is int and 0 <= value < _LARGEST_STEP else None


def settings(content: Any, weights: Any) -> dict[str, Any]:
    """Read the settings that were saved with the weights.

    Args:
        content: what was saved.
        weights: the state dict in it; by its names the built-in GPT is known.

    Returns:
        Sections "model" (the built-in GPT's sizes, where they are among them), "optimizer" and "training".
    """
    sections: dict[str, Any] = {}
    training: dict[str, Any] = {}
    of_gpt = isinstance(weights, Mapping) and any(str(name).endswith(_GPT_NAME) for name in weights)
    for key in SETTINGS_KEYS if isinstance(content, Mapping) else ():
        said = plain_settings(content.get(key))
        if of_gpt and "model" not in sections:
            described = next((part for part in (said, *said.values()) if is_gpt(part)), None)
            if described is not None:
                sections["model"] = {"model_type": "gpt", "norm": "pre", **described}
        training = {**said, **training}
    if training:
        sections["training"] = training
    place = optimizer_key(content)
    if place is not None:
        state = content[place] if place else content
        group = (state if isinstance(state, Mapping) else state[0])["param_groups"]
        first = group[0] if isinstance(group, list | tuple) and group else {}
        sections["optimizer"] = plain_settings({k: v for k, v in first.items() if k != "params"})
    return sections


def is_gpt(value: Any) -> bool:
    """Tell the sizes of nanoGPT's model.

    Returns:
        True for a mapping with all five, and no other model's name.
    """
    return (
        isinstance(value, Mapping)
        and value.get("model_type") in {None, "gpt"}
        and all(type(value.get(size)) is int for size in _GPT_SIZES)
    )


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefix that compiling, DDP or FSDP put before all names.

    Returns:
        Parameter name -> tensor.
    """
    names = list(tensors)
    while names:
        prefix = next((one for one in _WRAPPERS if all(name.startswith(one) for name in names)), None)
        if prefix is None:
            break
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def _is_state_dict(value: Any) -> bool:
    # Mostly tensors, by names: buffers of other kinds and a few remarks may be among them.
    if not isinstance(value, Mapping) or not value:
        return False
    tensors = sum(is_tensor(one) or hasattr(one, "untyped_storage") for one in value.values())
    return 2 * tensors > len(value) and all(isinstance(key, str) for key in value)


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()
