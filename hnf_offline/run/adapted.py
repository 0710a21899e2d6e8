"""Find the model that a LoRA adapter was trained on: a folder on this disk, never a download."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError, MissingExtraError, UserError
from hnf_offline.run.formats.safetensors_file import read_json, weight_files
from hnf_offline.run.records import AdapterSource, Checkpoint, ModelSource

#: Settings that a replay follows, or that change nothing in it (peft 0.21 tuners/lora/config.py, LoraConfig). Any other
#: one that is set means another computation, and the adapter is not replayed.
_FOLLOWED = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora"),
    *("fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias"),
    # Which modules have an adapter is read off the tensors.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("auto_mapping", "peft_version", "inference_mode", "lora_dropout", "megatron_core", "qalora_group_size"),
    "runtime_config",
}
#: Starts that leave the frozen weights as they were; others (PiSSA, OLoRA, CorDA, LoftQ) take their own part off them.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
#: Patterns of names are regular expressions in PEFT; only those that are plain names are followed.
_PLAIN = re.compile(r"\^?[\w.]{1,500}")
_REMEDY = 'write its folder into a run.toml of yours and name that with --manifest: [model] base = "FOLDER"'
_HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def adapter_source(
    run: Path, adapters: Sequence[Checkpoint], base: Path | None
) -> tuple[ModelSource | None, str]:
    """Say how to build the model that adapters belong to, or why that cannot be.

    Args:
        run: the run.
        adapters: its checkpoints that are adapters.
        base: the folder of the model they were trained on where a run.toml names it; else adapter_config.json does.

    Returns:
        The model and "", or None and what is missing, with what to do about it.

    Raises:
        InputError: when the folder that a run.toml names is no model's.
    """
    checkpoint = next((one for one in adapters if one.config_file is not None), adapters[-1])
    settings = {} if checkpoint.config_file is None else read_json(checkpoint.config_file)
    reason = _not_followed(settings)
    if reason:
        return None, reason
    folder = _folder(run, settings) if base is None else base
    if folder is None:
        named = str(settings.get("base_model_name_or_path"))[:200]
        return None, f"the model it was trained on ({named}) is not on this disk; {_REMEDY}"
    try:
        files = weight_files(folder)
        if not files or not (folder / "config.json").is_file():
            lacks = "safetensors weights" if not files else "config.json"
            raise InputError(f"has no {lacks}", path=folder, remedy="name the folder of a model as saved")
    except InputError as error:
        if base is not None:
            raise
        return None, f"the model it was trained on cannot be read ({error})"
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        return None, (
            f"the model it was trained on is saved quantised ({folder}); for the model as it was before that, {_REMEDY}"
        )
    for package in ("transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            return None, str(MissingExtraError(package, "peft", "the replay of an adapter"))
    adapter = AdapterSource(settings, files, checkpoint)
    return ModelSource("adapter", config, checkpoint.config_file, adapter=adapter), ""


def with_optimizer(checkpoint: Checkpoint) -> Checkpoint:
    """Give a checkpoint the optimizer state that lies beside it: with the model the order of its parameters is known.

    Returns:
        The checkpoint.
    """
    if checkpoint.optimizer_files:
        return checkpoint
    files = [checkpoint.path / name for name in ("optimizer.pt", "optimizer.bin")]
    return replace(checkpoint, optimizer_files=tuple(file for file in files if file.is_file())[:1])


def _not_followed(settings: Mapping[str, Any]) -> str:
    # What of an adapter's settings a replay cannot follow, "" where it follows them all.
    kind = settings.get("peft_type")
    if not settings:
        return "adapter_config.json is not there or cannot be read; copy it from where the adapter was saved"
    if kind != "LORA":
        return f"it is {str(kind)[:40]}, and of all adapters LoRA alone is replayed"
    odd = [name for name, value in settings.items() if name not in _FOLLOWED and value]
    if settings.get("init_lora_weights") not in _STARTS:
        odd.append("init_lora_weights")
    if settings.get("bias", "none") != "none":
        odd.append("bias")
    patterns = [settings.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(one, dict) and all(map(_PLAIN.fullmatch, one)) for one in patterns):
        odd.append("alpha_pattern")
    if not _is_list_of_names(settings.get("modules_to_save") or []):
        odd.append("modules_to_save")
    if not odd:
        return ""
    shown = f"{odd[0]} = {settings.get(odd[0])!r}"[:200]
    return f"its adapter_config.json says {shown}, which the replay does not follow"


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _folder(run: Path, settings: Mapping[str, Any]) -> Path | None:
    for folder in _candidates(run, settings):
        try:
            if (folder / "config.json").is_file():
                return folder
        except (OSError, ValueError):  # a name that no file can have
            continue
    return None


def _candidates(run: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Go through the folders that the name of the model may mean.

    Yields:
        As training took it: from where the program was started, which may have been here, beside the run or in it;
        then what the hub's cache on this disk has of that name.
    """
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name or len(name) > 4096:
        return
    for start in (Path(), run.absolute().parent, run):
        yield start / name
    if not _HUB_NAME.fullmatch(name):
        return
    try:
        from huggingface_hub import try_to_load_from_cache

        revision = settings.get("revision")
        found = try_to_load_from_cache(
            name, "config.json", revision=revision if isinstance(revision, str) else None
        )
    except (ImportError, ValueError, OSError, UserError):
        return
    if isinstance(found, str):
        yield Path(found).parent
