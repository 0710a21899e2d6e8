"""Safetensors weights with the step in a name: step-000352/, step_100.safetensors, 352/model.safetensors.

hnf_offline.record writes this layout; a Hugging Face model folder without a step is one checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import hf_trainer, safetensors_file
from hnf_offline.run.formats.names import step_in_name, step_in_path
from hnf_offline.run.formats.saved_optimizer import raw_optimizer
from hnf_offline.run.paths import leads_out
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "safetensors_folder"
_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "exp_avg", "momentum_buffer")


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise a folder of safetensors weights, or one file with the step in its name.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the entry is something else.
    """
    if entry.is_file():
        step = step_in_name(entry.stem)
        if entry.suffix != ".safetensors" or step is None or not safetensors_file.holds_weights(entry):
            return None
        safetensors_file.read_header(entry)
        beside = [entry.with_name(f"{entry.stem}{mark}optimizer.safetensors") for mark in (".", "_", "-")]
        return Checkpoint(
            step, entry, LAYOUT, (entry,), tuple(p for p in beside if p.is_file())[:1], _config(entry, root)
        )
    step = step_in_path(entry, root)
    whole = entry / "model.safetensors"
    if step is None and not whole.is_file() and not (entry / safetensors_file.INDEX).is_file():
        return None
    files = safetensors_file.weight_files(entry)
    if not files:
        return None
    if step is None:
        step = hf_trainer.saved_step(entry)
    optimizer = entry / "optimizer.safetensors"
    if optimizer.is_file():
        safetensors_file.read_header(optimizer)
    return Checkpoint(
        step,
        entry,
        LAYOUT,
        files,
        (optimizer,) if optimizer.is_file() else (),
        _config(entry / "model", root),
    )


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU in their own type.

    Returns:
        Parameter name -> tensor.
    """
    return safetensors_file.load(checkpoint.weight_files, memory_map=checkpoint.memory_map)


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read optimizer.safetensors: tensors `exp_avg.<parameter>` and so on, settings in its metadata.

    Returns:
        The state by parameter name, None where none was saved.

    Raises:
        InputError: when a tensor is of no known kind.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    settings = _settings(file)
    state: dict[int | str, dict[str, Any]] = {}
    for key, tensor in safetensors_file.load([file], memory_map=checkpoint.memory_map).items():
        moment, _, name = key.partition(".")
        if not name:
            raise InputError(
                f"its tensor {key!r} is not named <moment>.<parameter>",
                path=file,
                remedy=f"moments are {', '.join(_MOMENTS)}",
            )
        state.setdefault(name, {})[moment] = tensor
    steps = settings.get("step", {})
    for name, step in steps.items() if isinstance(steps, dict) else ():
        state.setdefault(name, {})["step"] = step
    groups = settings.get("param_groups") or [{"params": list(state)}]
    kind = settings.get("kind")
    content = {"state": state, "param_groups": [{"params": [], **group} for group in groups]}
    return raw_optimizer(content, file, None if kind is None else str(kind))


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read config.json and the optimizer's settings, without reading a tensor.

    Returns:
        Sections "model", "optimizer", "training".
    """
    config = {} if checkpoint.config_file is None else safetensors_file.read_json(checkpoint.config_file)
    if is_recording(config):
        sections = {
            key: config[key]
            for key in ("model", "optimizer", "training")
            if isinstance(config.get(key), dict)
        }
    else:
        sections = {"model": config} if config else {}
    if checkpoint.optimizer_files:
        settings = _settings(checkpoint.optimizer_files[0])
        groups = settings.get("param_groups") or [{}]
        saved = {key: value for key, value in groups[0].items() if key != "params"}
        kind = {"kind": settings["kind"]} if settings.get("kind") else {}
        sections["optimizer"] = {**kind, **saved, **sections.get("optimizer", {})}
    return sections


def is_recording(config: Mapping[str, Any]) -> bool:
    """Tell a config.json of hnf_offline.record from a model's.

    Returns:
        True where its `format` says so.
    """
    return str(config.get("format", "")).startswith("hnf_offline.record/")


def _settings(file: Path) -> dict[str, Any]:
    text = safetensors_file.read_metadata(file).get("optimizer", "{}")
    try:
        settings = json.loads(text)
        groups = settings.get("param_groups") or []
        if not all(isinstance(group, dict) for group in groups):
            raise ValueError("param_groups are not objects")
    except (ValueError, AttributeError, RecursionError, TypeError) as error:
        raise InputError(f"its optimizer metadata is not JSON ({error})", path=file) from error
    return dict(settings)


def _config(entry: Path, root: Path) -> Path | None:
    # The nearest config.json at or above the weights, not above the run.
    for folder in entry.parents:
        if (folder / "config.json").is_file() and not leads_out(folder / "config.json", root):
            return folder / "config.json"
        if folder == root:
            break
    if entry.parent != root:
        return None
    # One checkpoint was named instead of its run: the recorder keeps the settings above it.
    above = [folder / "config.json" for folder in list(root.absolute().parents)[:2]]
    return next((file for file in above if is_recording(safetensors_file.read_json(file))), None)
