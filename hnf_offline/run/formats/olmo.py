"""OLMo: `step1000-unsharded/` with config.yaml, model.safetensors or model.pt, optim.safetensors or optim.pt.

OLMo's own safetensors files name each tensor by base64 of a pickle of its place in nested dictionaries, and hold
what is no tensor as pickles in byte tensors. Both are decoded as plain values that name and call nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats import safetensors_file, torch_file
from hnf_offline.run.formats.inert_pickle import decode_plain
from hnf_offline.run.formats.names import step_in_path
from hnf_offline.run.formats.plain_settings import plain_settings
from hnf_offline.run.formats.saved_optimizer import raw_optimizer
from hnf_offline.run.formats.torch_contents import optimizer_key, without_wrappers
from hnf_offline.run.formats.torch_outline import read_outline
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "olmo"
CONFIG = "config.yaml"
_UNSHARDED = re.compile(r"step(\d+)-unsharded|latest-unsharded")
_STEP = re.compile(r"step(\d+)(?:-unsharded)?")
_ENDINGS = (".safetensors", ".pt")
_LARGEST_CONFIG = 200_000
#: A name has a handful of parts; a remark on groups some thousand parameter names.
_LONGEST_NAME, _LONGEST_VALUE = 10_000, 20_000_000
_DEEPEST = 16
#: Any pickle of two or more bytes of protocol 2 and later starts so, in base64.
_ENCODED = re.compile(r"gA[A-Za-z0-9_\-=]+")


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise `step<N>-unsharded/` and other folders of these files.

    Args:
        entry: a file or folder of the run.
        root: the run directory.

    Returns:
        The checkpoint, None where the folder is something else.

    Raises:
        InputError: when its weights are missing or damaged, or still in the shards of their ranks.

    Source: allenai/OLMo@59a53e3 docs/Checkpoints.md, l. 14-36; olmo/checkpoint.py, l. 672-790.
    """
    if not entry.is_dir() or not (entry / CONFIG).is_file():
        return None
    named = _UNSHARDED.fullmatch(entry.name) is not None
    weights, optimizer = _either(entry, "model"), _either(entry, "optim")
    whole = named or optimizer is not None or (entry / "train.pt").is_file()
    if not whole or weights is None:
        _refuse_parts(entry, named)
        return None
    for file in (weights, optimizer):
        if file is not None and file.suffix == ".safetensors":
            safetensors_file.read_header(file)
        elif file is not None:
            torch_file.check(file)
    found = _STEP.fullmatch(entry.resolve().name) if entry.is_symlink() else None
    step = int(found.group(1)) if found else step_in_path(entry, root)
    return Checkpoint(
        step or 0, entry, LAYOUT, (weights,), () if optimizer is None else (optimizer,), entry / CONFIG
    )


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights on the CPU in their own type, under their plain names.

    Returns:
        Parameter name -> tensor.
    """
    file = checkpoint.weight_files[0]
    content = _load(file, checkpoint.memory_map)
    return without_wrappers(torch_file.tensors_of(content.get("model", content), file))


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read optim.safetensors or optim.pt on the CPU; groups name their parameters.

    Returns:
        The state as saved, None where none was saved.
    """
    if not checkpoint.optimizer_files:
        return None
    file = checkpoint.optimizer_files[0]
    content = _load(file, checkpoint.memory_map)
    if "state" in content and "param_groups" not in content:
        # The groups were pickled in a way that is not read; the state still names its parameters.
        content = {**content, "param_groups": [{"params": list(content["state"])}]}
    return raw_optimizer(content, file)


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read config.yaml, where PyYAML is installed (transformers brings it).

    Returns:
        Sections "model", "optimizer" and "training"; empty where the file cannot be read.
    """
    said = _read_yaml(checkpoint.path / CONFIG)
    sections = {key: said.pop(key) for key in ("model", "optimizer") if isinstance(said.get(key), dict)}
    if said:
        sections["training"] = said
    if (
        "optimizer" not in sections
        and checkpoint.optimizer_files[:1]
        and checkpoint.optimizer_files[0].suffix == ".pt"
    ):
        content = read_outline(checkpoint.optimizer_files[0]).content
        if optimizer_key(content) == "" and content["param_groups"]:
            sections["optimizer"] = plain_settings(content["param_groups"][0])
    return sections


def _either(folder: Path, stem: str) -> Path | None:
    return next(
        (folder / f"{stem}{ending}" for ending in _ENDINGS if (folder / f"{stem}{ending}").is_file()), None
    )


def _refuse_parts(folder: Path, named: bool) -> None:
    # Shards of single ranks: model/rank0.pt (torch_legacy), or rank0.pt (local).
    if any((folder / name).is_file() for name in ("rank0.pt", "model/rank0.pt", "model/rank0.safetensors")):
        raise InputError(
            "holds the shards of single ranks",
            path=folder,
            remedy="put them together with OLMo's scripts/unshard.py",
        )
    if named:
        raise InputError("has no model weights", path=folder, remedy="remove it or copy it again")


def _load(file: Path, memory_map: bool) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        content = torch_file.load(file, memory_map=memory_map)
        return dict(content) if isinstance(content, Mapping) else {}
    tensors = safetensors_file.load([file], memory_map=memory_map)
    if not all(_ENCODED.fullmatch(name) for name in tensors):
        return dict(tensors)
    whole: dict[str, Any] = {}
    for name, tensor in tensors.items():
        keys, pickled = _decode_name(name, file)
        value: Any = tensor
        if pickled:
            try:
                value = _decode_value(tensor, file)
            except InputError:
                continue
        _put(whole, keys, value, file)
    return whole


def _decode_name(name: str, file: Path) -> tuple[tuple[str | int, ...], bool]:
    try:
        if len(name) > _LONGEST_NAME:
            raise ValueError("it is too long")
        keys, pickled = decode_plain(base64.urlsafe_b64decode(name), file)
        if not isinstance(keys, tuple) or not 1 <= len(keys) <= _DEEPEST or type(pickled) is not bool:
            raise ValueError("it is no place in a dictionary")
        if not all(type(key) in {str, int} for key in keys):
            raise ValueError("its parts are no names")
    except (binascii.Error, ValueError, TypeError) as error:
        raise InputError(
            f"its tensor name {name[:40]!r} is not as OLMo writes it ({error})",
            path=file,
            remedy="copy the file again from where it was written",
        ) from error
    return keys, pickled


def _decode_value(tensor: Tensor, file: Path) -> Any:
    import torch

    if tensor.dtype != torch.uint8 or tensor.ndim != 1 or tensor.numel() > _LONGEST_VALUE:
        raise InputError("holds a value that is no pickle", path=file)
    return decode_plain(tensor.numpy().tobytes(), file)


def _put(whole: dict[str, Any], keys: tuple[str | int, ...], value: Any, file: Path) -> None:
    place: Any = whole
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise InputError(f"has a value and a dictionary at {str(keys)[:100]}", path=file)
    place[keys[-1]] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        return {}
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_CONFIG:
            return {}
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    # Anchors may name one thing in many places, so only a bounded copy of it is taken.
    return plain_settings(content)
