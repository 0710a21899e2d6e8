"""Megatron-LM: `iter_0001000/`: torch_dist (a DCP folder with metadata.json), or legacy (mp_rank_00/)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import dcp, inert_torch, safetensors_file, torch_file
from hnf_offline.run.formats.dcp_metadata import NAME, Item, read_index
from hnf_offline.run.formats.names import step_in_path
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "megatron"
_DESCRIPTION, _COMMON, _LEGACY = "metadata.json", "common.pt", "model_optim_rng.pt"
_RANK = re.compile(r"mp_rank_(\d+)(?:_\d+)*")
_STATE = re.compile(r"optimizer\.state\.(exp_avg|exp_avg_sq|momentum_buffer)\.(.+)")
#: What is beside the model in a torch_dist folder, by the beginning of its name.
_OTHERS = re.compile(
    r"(?:optimizer|chained_\d+\.optimizer|rng_state|rerun_state_machine_state|opt_param_scheduler)\b"
)
_CONVERT = (
    "convert it with Megatron-LM's tools/checkpoint/convert.py (--saver core, then --ckpt-format torch_dist), or to "
    "Hugging Face files"
)
#: Names of Megatron's arguments -> those of torch's optimizers.
_ARGUMENTS = {"lr": "lr", "adam_eps": "eps", "weight_decay": "weight_decay", "sgd_momentum": "momentum"}


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a folder with Megatron's metadata.json, or with its mp_rank_00.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else.

    Raises:
        InputError: when files are missing, damaged or unsafe, or of a kind that has to be converted.

    Source: NVIDIA/Megatron-LM@d98e8a6 megatron/training/checkpointing.py, l. 228-300 and 378;
        megatron/core/dist_checkpointing/core.py, l. 13, strategies/common.py, l. 15, strategies/torch.py.
    """
    if not entry.is_dir():
        return None
    backend = safetensors_file.read_json(entry / _DESCRIPTION).get("sharded_backend")
    if isinstance(backend, str):
        if backend != "torch_dist":
            raise InputError(
                f"is of Megatron's kind {backend[:40]!r}, which is not read", path=entry, remedy=_CONVERT
            )
        return _sharded(entry, root)
    ranks = [folder for folder in sorted(entry.glob("mp_rank_*")) if (folder / _LEGACY).is_file()]
    return _legacy(entry, root, ranks) if ranks else None


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the model's weights on the CPU as they are stored: layers may lie behind one another on a first axis.

    Returns:
        Parameter name -> tensor.
    """
    file = checkpoint.weight_files[0]
    if file.name == NAME:
        return {name: dcp.read_tensor(item) for name, item in _weights(read_index(file.parent)).items()}
    content = inert_torch.load(file, _CONVERT, memory_map=checkpoint.memory_map)
    return torch_file.tensors_of(dict(_flat(content["model"])), file)


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read Adam's moments by parameter name, where they are stored in the shape of the weights.

    Returns:
        The state, None where none was saved, or only flat pieces of it.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    state: dict[str, dict[str, Any]] = {}
    for item, key, name in _moments(read_index(file.parent)):
        state.setdefault(name, {})[key] = dcp.read_tensor(item)
    group = dict(next(iter(_groups(_common(checkpoint))), {}))
    step = group.pop("step", None)
    if isinstance(step, int | float):
        state = {name: {**moments, "step": int(step)} for name, moments in state.items()}
    settings = {**_settings(_common(checkpoint)), **group}
    return torch_file.raw_optimizer(
        {"state": state, "param_groups": [{**settings, "params": list(state)}]}, file
    )


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read the arguments of the training from common.pt, or from the one file of a legacy checkpoint.

    Returns:
        Sections "optimizer" and "training".
    """
    common = _common(checkpoint)
    arguments = _arguments(common)
    sections: dict[str, Any] = {}
    if arguments:
        sections["training"] = {
            key: value for key, value in arguments.items() if isinstance(value, bool | int | float | str)
        }
        sections["optimizer"] = _settings(common)
    return sections


def _sharded(entry: Path, root: Path) -> Checkpoint:
    if not (entry / NAME).is_file():
        raise InputError(
            f"has no {NAME}: saving it was not finished",
            path=entry,
            remedy="remove it, or copy it again from where it was written",
        )
    index = read_index(entry)
    weights = _weights(index)
    if not weights:
        raise InputError("holds no weights", path=entry, remedy="name the folder that holds the model")
    moments = [item for item, _, _ in _moments(index)]
    step = step_in_path(entry, root)
    files = dcp.files_of(entry, weights.values())
    state = dcp.files_of(entry, moments) if moments else ()
    return Checkpoint(0 if step is None else step, entry, LAYOUT, files, state)


def _legacy(entry: Path, root: Path, ranks: list[Path]) -> Checkpoint:
    if len(ranks) > 1 or _RANK.fullmatch(ranks[0].name) is None:
        raise InputError(
            f"is split over {len(ranks)} tensor or pipeline parts, which are not put together",
            path=entry,
            remedy=_CONVERT,
        )
    file = ranks[0] / _LEGACY
    content = inert_torch.check(file, _CONVERT)
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise InputError("holds no model of one part", path=file, remedy=_CONVERT)
    step = step_in_path(entry, root)
    if step is None:
        step = content["iteration"] if type(content.get("iteration")) is int else 0
    return Checkpoint(step, entry, LAYOUT, (file,))


def _weights(index: Mapping[str, Item]) -> dict[str, Item]:
    return {
        name.removeprefix("model."): item
        for name, item in index.items()
        if item.shape is not None and not _OTHERS.match(name) and "_extra_state" not in name
    }


def _moments(index: Mapping[str, Item]) -> Iterator[tuple[Item, str, str]]:
    # (item, kind of moment, parameter): those in the parameter's shape; flat pieces belong to no one parameter.
    weights = _weights(index)
    for name, item in index.items():
        found = _STATE.fullmatch(name)
        if found is None or item.shape is None:
            continue
        parameter = found.group(2).removeprefix("model.")
        if parameter in weights and weights[parameter].shape == item.shape:
            yield item, found.group(1), parameter


def _common(checkpoint: Checkpoint) -> Mapping[str, Any]:
    # What is not a tensor: empty where it is not there or holds more than plain values.
    file = checkpoint.weight_files[0]
    file = file.parent / _COMMON if file.name == NAME else file
    try:
        content = inert_torch.load(file, _CONVERT, memory_map=checkpoint.memory_map)
    except InputError:
        return {}
    return content if isinstance(content, Mapping) else {}


def _arguments(common: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = common.get("args")
    return arguments.fields if isinstance(arguments, inert_torch.Settings) else {}


def _settings(common: Mapping[str, Any]) -> dict[str, Any]:
    arguments = _arguments(common)
    found = {
        ours: arguments[key]
        for key, ours in _ARGUMENTS.items()
        if isinstance(arguments.get(key), int | float)
    }
    betas = [arguments.get("adam_beta1"), arguments.get("adam_beta2")]
    if arguments.get("optimizer") != "sgd":
        found.pop("momentum", None)
        if all(isinstance(beta, float) for beta in betas):
            found["betas"] = tuple(betas)
    return found


def _groups(common: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    state = common.get("optimizer")
    while isinstance(state, Mapping) and "param_groups" not in state:
        state = state.get("optimizer")
    for group in (state or {}).get("param_groups") or ():
        if isinstance(group, Mapping):
            yield {
                key: value
                for key, value in group.items()
                if key in {"lr", "betas", "eps", "momentum", "step"} and value is not None
            }


def _flat(model: Any) -> Iterator[tuple[str, Any]]:
    # Legacy models are dictionaries in dictionaries: without recursion, and once each, however they are nested.
    waiting = [("", model)]
    seen: set[int] = set()
    while waiting:
        prefix, value = waiting.pop()
        if not isinstance(value, Mapping):
            yield prefix, value
        elif id(value) not in seen:
            seen.add(id(value))
            inner = [(f"{prefix}.{key}" if prefix else str(key), one) for key, one in value.items()]
            waiting += reversed(inner)
