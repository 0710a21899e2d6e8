"""DeepSpeed ZeRO: `global_step<N>/` with *_model_states.pt and *_optim_states.pt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError
from hnf_offline.run.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.run.optimizer import RawOptimizer

LAYOUT = "deepspeed"


def recognise(entry: Path, root: Path) -> Checkpoint | None:
    """Recognise it.

    Returns:
        None, so far.
    """
    return None


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read the weights.

    Raises:
        InputError: always, so far.
    """
    raise InputError("is not read yet", path=checkpoint.path)


def load_optimizer(checkpoint: Checkpoint) -> RawOptimizer | None:
    """Read the optimizer state.

    Returns:
        None, so far.
    """
    return None


def configuration(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Read the settings.

    Returns:
        Nothing, so far.
    """
    return {}
