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
from hnf_offline.run.formats.saved_optimizer import raw_optimizer as raw_optimizer  # noqa: PLC0414 (given on)
from hnf_offline.run.formats.torch_outline import read_outline
from hnf_offline.run.paths import status_of

if TYPE_CHECKING:
    from torch import Tensor

_LEGACY_START = (b"\x80", b"PK")
_REMEDY = "copy it again from where it was written, or remove it"
#: Tied and shared weights are in a state dict several times and in the file once.
_MOST_SHARED = 32


def check(path: Path) -> None:
    """Check without reading it that a torch.save file is whole.

    Raises:
        InputError: when the file is empty, truncated, or of another kind.
    """
    status_of(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from error
    if not start.startswith(_LEGACY_START) or (start == b"PK" and not _is_zip(path)):
        raise InputError(
            "is empty, truncated, or not a torch file",
            path=path,
            remedy="copy the file again from where it was written, or remove this checkpoint",
        )


def load(path: Path, *, memory_map: bool = True) -> Any:
    """Load a torch.save file on the CPU without running code from it.

    Args:
        path: a file in the zip format or the legacy format.
        memory_map: map a file in the zip format into memory; False reads it. Legacy files are always read.

    Returns:
        What was saved: tensors, numbers, text and containers of them.

    Raises:
        InputError: when the file is damaged.
        UnsafeFileError: when it holds objects that only code from the file could rebuild.
    """
    import torch

    check(path)
    # Before torch believes it: what the file says of itself fits into it.
    read_outline(path)
    mapped = memory_map and _is_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
            remedy=_REMEDY,
        ) from error


def load_tensors(files: Iterable[Path], *, memory_map: bool = True) -> dict[str, Tensor]:
    """Load state dicts (pytorch_model.bin, whole or sharded).

    Args:
        files: the files.
        memory_map: as for `load`.

    Returns:
        Tensor name -> tensor.

    Raises:
        InputError: when a file does not hold a mapping of tensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(tensors_of(load(file, memory_map=memory_map), file))
    return tensors


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """Take the tensors of a state dict.

    Returns:
        Tensor name -> tensor; entries that are not tensors are left out.

    Raises:
        InputError: when there is no tensor in it, or one that has not all its elements in the file.
    """
    import torch

    if isinstance(content, Mapping):
        # A parameter that was saved as such is its tensor.
        tensors = {
            str(name): value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)
        }
        _check_tensors(tensors, path)
        if tensors:
            return tensors
    raise InputError("holds no weights", path=path, remedy="point at the file with the model's state_dict")


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    import torch

    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise InputError(
                f"its tensor {name} is {kind}", path=path, remedy="save it as an ordinary tensor on the CPU"
            )
        size = tensor.numel() * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes():
            raise InputError(
                f"its tensor {name} of shape {tuple(tensor.shape)} repeats elements of a smaller one",
                path=path,
                remedy="save it with .clone(), as whole as it was used",
            )
    if total > _MOST_SHARED * path.stat().st_size:
        raise InputError("its tensors are many times larger than the file", path=path, remedy=_REMEDY)


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one whose end claims to be spread over several disks
        return False


def _culprit(message: str) -> str:
    found = re.search(r"GLOBAL\s+([\w.]+\.[\w.]+)", message) or re.search(
        r"Unsupported (?:global|class|operand)[^:]*:?\s+([\w.]+)", message
    )
    return f" ({found.group(1)})" if found else ""


def _conversion(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    return (
        "if you wrote it yourself, convert it to safetensors: "
        'python -c "import torch, safetensors.torch as s; '
        f"w = torch.load({path.name!r}, weights_only=False); "
        "w = next((w[k] for k in ('model', 'state_dict', 'model_state_dict', 'module') if k in w), w); "
        "s.save_file({k: v.clone().contiguous() for k, v in w.items() if torch.is_tensor(v)}, "
        f'{target!r})"'
    )
