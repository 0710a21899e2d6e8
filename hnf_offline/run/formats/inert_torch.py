"""Files of torch.save that hold settings of a trainer beside tensors: read with inert records in their place.

torch's own weights_only unpickler reads them, and refuses every class that it does not know. The few settings that
DeepSpeed and Megatron always save with their tensors are answered with a record of this file, which keeps what the
pickle says and does nothing. All other names are refused as ever, and nothing of the file is run.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run.formats import torch_file
from hnf_offline.run.formats.torch_outline import read_outline

#: Settings these trainers save; a record stands for each.
_SETTINGS = re.compile(
    r"argparse\.Namespace"
    r"|deepspeed\.runtime\.fp16\.loss_scaler\.(?:Dynamic)?LossScaler(?:Base)?"
    r"|deepspeed\.utils\.tensor_fragment\.fragment_address"
    r"|deepspeed\.runtime\.zero\.config\.ZeroStageEnum"
    r"|megatron\.(?:core|legacy|model|training)(?:\.\w+)*\.(?:ModelType|LayerType|AttnBackend|AttnMaskType|AttnType)"
    r"|megatron\.core\.rerun_state_machine\.(?:RerunMode|RerunState|RerunDiagnostic)"
)
#: Names that need no answer here: torch's unpickler has its own.
_TORCH = re.compile(r"torch\..*|collections\.(?:OrderedDict|Counter|defaultdict)")
#: What torch's unpickler is told of is one list for the whole process.
_LOCK = threading.Lock()


class Settings:
    """What a pickle says of an object: its arguments, and its fields where it has some."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.fields: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.arguments = ()
        self.fields = state if isinstance(state, dict) else {}


def check(path: Path, converter: str) -> Any:
    """Look at a file without reading a tensor, and refuse it where `load` would.

    Args:
        path: the file.
        converter: what to run instead.

    Returns:
        Its content; tensors and settings are records.

    Raises:
        InputError: when the file is damaged.
        UnsafeFileError: when it holds objects that only code from the file could rebuild.
    """
    outline = read_outline(path)
    strange = [
        name for name in outline.foreign if not _SETTINGS.fullmatch(name) and not _TORCH.fullmatch(name)
    ]
    if strange:
        raise UnsafeFileError(
            f"it holds more than tensors ({strange[0][:100]}), which only code from the file could rebuild",
            path=path,
            remedy=converter,
        )
    return outline.content


def load(path: Path, converter: str, *, memory_map: bool = True) -> Any:
    """Load a torch.save file on the CPU without running code from it, trainers' settings as inert records.

    Args:
        path: the file.
        converter: what to run instead, where the file holds more than that.
        memory_map: whether the file may be mapped into memory.

    Returns:
        What was saved.

    Raises:
        InputError: when the file is damaged.
        UnsafeFileError: when it holds objects that only code from the file could rebuild.
    """
    import torch

    known = [_stand_in(name) for name in read_outline(path).foreign if _SETTINGS.fullmatch(name)]
    try:
        with _LOCK, torch.serialization.safe_globals([*known]):
            return torch_file.load(path, memory_map=memory_map)
    except UnsafeFileError as error:
        raise UnsafeFileError(error.reason, path=path, remedy=converter) from error
    except (AttributeError, TypeError) as error:
        raise InputError(f"is damaged ({error})", path=path, remedy=converter) from error


def _stand_in(name: str) -> type[Settings]:
    # torch finds a class by its module and name; this one has nothing else of it.
    module, _, own = name.rpartition(".")
    return type(own, (Settings,), {"__module__": module, "__qualname__": own})
