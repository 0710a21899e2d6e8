"""Generator states that a run recorded before its forward passes: with them dropout can be replayed exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.formats.safetensors_file import read_header
from hnf_offline.run.paths import OUTWARD, OUTWARD_REMEDY, leads_out

if TYPE_CHECKING:
    from torch import Tensor

FILE = "random_states.safetensors"
_REMEDY = "copy the file again from where it was written, or remove it"
#: A generator's state has 16 bytes (CUDA) to some thousand (Mersenne twister).
_LARGEST_STATE = 1_000_000
_MOST_STEPS = 10_000_000


@dataclass(frozen=True, slots=True)
class RandomStates:
    """States of torch's generators just before the forward pass of some steps, read only when asked for.

    Attributes:
        path: the file.
        steps: the step of each row, each once.
    """

    path: Path
    steps: tuple[int, ...]


def find_random_states(path: Path) -> RandomStates | None:
    """Find the recorded generator states of a run, from the file's header and its `steps` alone.

    Args:
        path: the run directory.

    Returns:
        The steps that have one, None where the run recorded none.

    Raises:
        InputError: if the file is damaged or its arrays do not fit together.
    """
    file = path / FILE
    if not path.is_dir() or not file.is_file():
        return None
    if leads_out(file, path):
        raise InputError(OUTWARD, path=file, remedy=OUTWARD_REMEDY)
    header = read_header(file)
    rows = _rows(header, file)
    steps = tuple(int(step) for step in _read(file, "steps").tolist())
    if len(set(steps)) != rows or min(steps) < 0:
        raise InputError("its steps are not one of a kind", path=file, remedy=_REMEDY)
    return RandomStates(file, steps)


def load_random_state(states: RandomStates, step: int) -> Mapping[str, Tensor] | None:
    """Load the generator states just before the forward pass of a step.

    Args:
        states: what `find_random_states` gave.
        step: the step.

    Returns:
        `cpu`, and `cuda` where the run was on a GPU: what torch.set_rng_state and torch.cuda.set_rng_state take;
        None where the file does not hold that step.

    Raises:
        InputError: if the file cannot be read any more, or this torch does not take its state.
    """
    if step not in states.steps:
        return None
    import torch
    from safetensors import SafetensorError, safe_open

    row = states.steps.index(step)
    found: dict[str, Tensor] = {}
    try:
        with safe_open(str(states.path), framework="pt") as archive:
            for name in ("cpu", "cuda"):
                if name in archive.keys():  # noqa: SIM118 (no mapping: it has no `in` of its own)
                    found[name] = archive.get_slice(name)[row : row + 1].reshape(-1).clone()
        torch.Generator().set_state(found["cpu"])
    except (SafetensorError, OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"cannot be read as safetensors ({error})", path=states.path, remedy=_REMEDY
        ) from error
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"its state of step {step} is none of this torch's generator ({str(error).splitlines()[0]})",
            path=states.path,
            remedy="replay it with the torch version that recorded it",
        ) from error
    return found


def _rows(header: Mapping[str, Any], file: Path) -> int:
    # Checks the three arrays against each other before anything is read.
    shapes: dict[str, list[int]] = {}
    for name, kind, dimensions in (("steps", "I64", 1), ("cpu", "U8", 2), ("cuda", "U8", 2)):
        entry = header.get(name)
        if entry is None and name == "cuda":
            continue
        shape = entry.get("shape") if isinstance(entry, dict) and entry.get("dtype") == kind else None
        if (
            not isinstance(shape, list)
            or len(shape) != dimensions
            or not all(isinstance(n, int) for n in shape)
        ):
            raise InputError(
                f"has no array {name!r} of {kind} with {dimensions} dimensions", path=file, remedy=_REMEDY
            )
        shapes[name] = shape
    rows = shapes["steps"][0]
    wrong = [name for name, shape in shapes.items() if shape[0] != rows or not 1 <= shape[-1] <= _MOST_STEPS]
    wrong += [name for name in ("cpu", "cuda") if name in shapes and shapes[name][1] > _LARGEST_STATE]
    if wrong:
        raise InputError(f"its array {wrong[0]!r} has shape {shapes[wrong[0]]}", path=file, remedy=_REMEDY)
    return rows


def _read(file: Path, name: str) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np") as archive:
            return archive.get_tensor(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"cannot be read as safetensors ({error})", path=file, remedy=_REMEDY) from error
