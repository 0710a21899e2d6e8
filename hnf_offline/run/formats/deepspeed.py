"""DeepSpeed ZeRO: `global_step<N>/` with *_model_states.pt and *_optim_states.pt, the fp32 weights cut over ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import deepspeed_partitions, inert_torch, safetensors_file, torch_file
from hnf_offline.run.formats.names import step_in_name, step_in_path
from hnf_offline.run.paths import inside
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "deepspeed"
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
#: Files of pipeline stages and of experts.
_SPLIT = re.compile(r"layer_\d+.*model.*_states\.pt|.*expert_\d+.*\.pt")
#: Weights that the Trainer saves beside the folder, in 16 bits.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_CONVERT = (
    "convert the weights with the script that lies beside global_step<N>: "
    "python zero_to_fp32.py . out --safe_serialization"
)
_CONVERT_SPLIT = (
    "convert it: python -m deepspeed.checkpoint.ds_to_universal --input_folder IN --output_folder OUT, or with the "
    "trainer's own tool (GPT-NeoX: tools/ckpts/convert_neox_to_hf.py)"
)
_COPY = "copy the files of all ranks into the folder"


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise `global_step<N>/`, and a Trainer's `checkpoint-<step>/` whose `latest` names one inside it.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else, or has weights that are read without this.

    Raises:
        InputError: when files are missing, damaged or unsafe, or the model is split by more than data parallelism.

    Source: deepspeedai/DeepSpeed@edaa722 runtime/engine.py, l. 4195-4256 and 4841; checkpoint/constants.py, l. 12-53.
    """
    if not entry.is_dir():
        return None
    folder = _folder(entry, root)
    if folder is None:
        return None
    try:
        return _checkpoint(entry, folder, root)
    except InputError:
        if folder != entry and any((entry / name).is_file() for name in _WEIGHTS):
            return None
        raise


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU: in fp32 from the optimizer's flat groups, else as the model saved them.

    Returns:
        Parameter name -> tensor.

    Raises:
        InputError: when the files do not fit together.
    """
    models = [_load(file, checkpoint) for file in _of(checkpoint.weight_files, _MODEL)]
    states = [_load(file, checkpoint) for file in _of(checkpoint.weight_files, _OPTIMIZER)]
    file = checkpoint.weight_files[0]
    module = torch_file.tensors_of(models[0].get("module"), file) if models[0].get("module") else {}
    if not states:
        return {name.removeprefix("module."): tensor for name, tensor in module.items()}
    weights = {name: module[name] for name in models[0].get("buffer_names") or () if name in module}
    try:
        weights |= deepspeed_partitions.frozen(models, len(states))
        weights |= deepspeed_partitions.masters(models[0]["param_shapes"], _states(states))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise InputError(_unfit(error), path=file, remedy=_CONVERT) from error
    for alias, name in (models[0].get("shared_params") or {}).items():
        if name in weights:
            weights[alias] = weights[name]
    return weights


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read the optimizer's moments on the CPU, by parameter name.

    Returns:
        The state as saved, None where none was saved.

    Raises:
        InputError: when the files do not fit together.
    """
    if not checkpoint.optimizer_files:
        return None
    file, *files = checkpoint.optimizer_files
    model = _load(file, checkpoint)
    if not files:
        return torch_file.raw_optimizer(model["optimizer"], file)
    states = [_load(one, checkpoint) for one in files]
    try:
        content = deepspeed_partitions.moments(model["param_shapes"], _states(states))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise InputError(_unfit(error), path=files[0], remedy=_CONVERT) from error
    return None if content is None else torch_file.raw_optimizer(content, files[0])


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read config.json beside it, the optimizer's settings and DeepSpeed's own, without reading a tensor.

    Returns:
        Sections "model", "optimizer", "training".
    """
    sections: dict[str, Any] = {}
    if checkpoint.config_file is not None:
        sections["model"] = safetensors_file.read_json(checkpoint.config_file)
    files = _of(checkpoint.optimizer_files, _OPTIMIZER)
    content = inert_torch.check(files[0] if files else checkpoint.weight_files[0], _CONVERT)
    state = _states([content])[0] if files else content.get("optimizer")
    for group in deepspeed_partitions.settings(state):
        sections["optimizer"] = {key: value for key, value in group.items() if key != "params"}
        break
    if isinstance(content.get("ds_config"), dict):
        sections["training"] = content["ds_config"]
    return sections


def _folder(entry: Path, root: Path) -> Path | None:
    # The folder with the ranks' files: the entry itself, or the one that its `latest` names.
    if any(_MODEL.fullmatch(file.name) or _SPLIT.fullmatch(file.name) for file in entry.glob("*_states.pt")):
        return entry
    latest = entry / "latest"
    if (
        entry == root
        or step_in_name(entry.name) is None
        or not latest.is_file()
        or latest.stat().st_size > 1000
    ):
        return None
    named = latest.read_text(encoding="utf-8", errors="replace").strip()
    folder = inside(entry, named, named_by=latest)
    return folder if named and folder != entry and any(folder.glob("*_model_states.pt")) else None


def _checkpoint(entry: Path, folder: Path, root: Path) -> Checkpoint:
    files = sorted(folder.glob("*_states.pt"), key=_natural)
    for file in files:
        found = _MODEL.fullmatch(file.name) or _OPTIMIZER.fullmatch(file.name)
        if _SPLIT.fullmatch(file.name) or (found is not None and int(found.group(2)) > 0):
            raise InputError(
                f"is split over model or pipeline parts, or experts ({file.name}), which are not put together",
                path=folder,
                remedy=_CONVERT_SPLIT,
            )
    models, optimizers = _of(files, _MODEL), _of(files, _OPTIMIZER)
    if not models:
        raise InputError("has no *_model_states.pt of rank 0", path=folder, remedy=_COPY)
    content = _mapping(inert_torch.check(models[0], _CONVERT), models[0])
    for file in (*models[1:], *optimizers):
        _mapping(inert_torch.check(file, _CONVERT), file)
    state: Any = None
    if optimizers:
        state = _states([_mapping(inert_torch.check(optimizers[0], _CONVERT), optimizers[0])])[0]
        _check_ranks(state, folder, optimizers)
    elif _MODEL.fullmatch(models[0].name).group(1) is not None:  # type: ignore[union-attr]
        raise InputError(
            "has the model's parts of stage 3 and no *_optim_states.pt", path=folder, remedy=_COPY
        )
    # In stage 3 every rank keeps its part of frozen parameters; all else of the model is in the first file.
    parts = models if _stage(state) == 3 and content.get("frozen_param_shapes") else models[:1]
    step = step_in_path(entry, root)
    if step is None:
        step = content["global_steps"] if type(content.get("global_steps")) is int else 0
    config = entry / "config.json"
    has_state = deepspeed_partitions.has_moments(state) if optimizers else _has_groups(content)
    return Checkpoint(
        step,
        entry,
        LAYOUT,
        (*parts, *optimizers),
        (models[0], *optimizers) if has_state else (),
        config if config.is_file() else None,
    )


def _has_groups(content: Mapping[str, Any]) -> bool:
    optimizer = content.get("optimizer")
    return isinstance(optimizer, Mapping) and {"state", "param_groups"} <= set(optimizer)


def _stage(state: Any) -> Any:
    return state.get("zero_stage") if isinstance(state, Mapping) else None


def _check_ranks(state: Any, folder: Path, files: Sequence[Path]) -> None:
    count = state.get("partition_count") if isinstance(state, Mapping) else None
    if isinstance(count, list) and count and len(set(map(str, count))) > 1:
        raise InputError(
            "has experts of their own ranks, which are not put together", path=folder, remedy=_CONVERT_SPLIT
        )
    count = count[0] if isinstance(count, list) and count else count
    if type(count) is int and count != len(files):
        raise InputError(f"has {len(files)} of {count} *_optim_states.pt", path=folder, remedy=_COPY)


def _states(contents: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [content.get("optimizer_state_dict") for content in contents]


def _mapping(content: Any, file: Path) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise InputError("is not what DeepSpeed saves", path=file, remedy=_CONVERT)
    return content


def _load(file: Path, checkpoint: Checkpoint) -> Mapping[str, Any]:
    return _mapping(inert_torch.load(file, _CONVERT, memory_map=checkpoint.memory_map), file)


def _of(files: Sequence[Path], pattern: re.Pattern[str]) -> list[Path]:
    return [file for file in files if pattern.fullmatch(file.name)]


def _natural(file: Path) -> list[Any]:
    # Rank 10 comes after rank 9.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]


def _unfit(error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0][:200]
    return f"its parts do not fit together ({reason or type(error).__name__})"
