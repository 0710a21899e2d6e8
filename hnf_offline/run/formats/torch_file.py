"""Files of torch.save: read with weights_only=True, which runs no code from them, or refused."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError, UnsafeFileError

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

_LEGACY_START = (b"\x80", b"PK")


def check(path: Path) -> None:
    """Check without reading it that a torch.save file is whole.

    Raises:
        InputError: when the file is empty, truncated, or of another kind.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    if not start.startswith(_LEGACY_START) or (start == b"PK" and not zipfile.is_zipfile(path)):
        raise InputError(
            "is empty, truncated, or not a torch file",
            path=path,
            remedy="copy the file again from where it was written, or remove this checkpoint",
        )


def load(path: Path) -> Any:
    """Load a torch.save file on the CPU without running code from it.

    Args:
        path: a file in the zip format (mapped into memory) or the legacy format.

    Returns:
        What was saved: tensors, numbers, text and containers of them.

    Raises:
        InputError: when the file is damaged.
        UnsafeFileError: when it holds objects that only code from the file could rebuild.
    """
    import torch

    check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"it holds more than tensors{_culprit(str(error))}, which only code from the file could rebuild",
            path=path,
            remedy=_conversion(path),
        ) from error
    except Exception as error:
        # torch raises RuntimeError, EOFError, KeyError, AssertionError ... on damaged files alike.
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise InputError(
            f"is damaged ({reason})",
            path=path,
            remedy="copy it again from where it was written, or remove it",
        ) from error


def load_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Load state dicts (pytorch_model.bin, whole or sharded).

    Returns:
        Tensor name -> tensor.

    Raises:
        InputError: when a file does not hold a mapping of tensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(tensors_of(load(file), file))
    return tensors


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Take the tensors of a state dict.

    Returns:
        Tensor name -> tensor; entries that are not tensors are left out.

    Raises:
        InputError: when there is no tensor in it.
    """
    import torch

    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if tensors:
            return tensors
    raise InputError("holds no weights", path=path, remedy="point at the file with the model's state_dict")


def raw_optimizer(content: Any, path: Path) -> RawOptimizer:
    """Read an optimizer's state_dict.

    Parameter names that torch >= 2.6 keeps in `param_names` turn numbered states into named ones.

    Returns:
        The state as saved.

    Raises:
        InputError: when it is not an optimizer's state_dict.
    """
    from hnf_offline.run.optimizer import RawOptimizer

    try:
        groups = tuple(dict(group) for group in content["param_groups"])
        state = {key: dict(one) for key, one in content["state"].items()}
        positions = [position for group in groups for position in group["params"]]
        names = [name for group in groups for name in group.get("param_names", ())]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("is not the state_dict of an optimizer", path=path) from error
    if len(names) == len(positions) == len(set(names)):
        name_of = dict(zip(positions, names, strict=True))
        state = {name_of.get(key, key): one for key, one in state.items()}
        groups = tuple({**group, "params": list(group["param_names"])} for group in groups)
        return RawOptimizer(None, groups, state, names=True)
    named = bool(positions) and all(isinstance(position, str) for position in positions)
    return RawOptimizer(None, groups, state, names=named)


def _culprit(message: str) -> str:
    found = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)[^:]*:?)\s+([\w.]+)", message)
    return f" ({found.group(1)})" if found else ""


def _conversion(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    return (
        "if you wrote it yourself, convert it to safetensors: "
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load({path.name!r}, weights_only=False); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.get('model', w).items()}}, {target!r})\""
    )
