"""modded-nanogpt and build-nanogpt: `step:428/20344 train_loss:6.3756 ...`, after the training script's source."""

from __future__ import annotations

from pathlib import Path

from hnf_offline.errors import InputError
from hnf_offline.run.logs.raw import RawLog


def recognises(path: Path, head: str) -> bool:
    """Tell the format.

    Returns:
        True where `read` should be tried.
    """
    return False


def read(path: Path) -> RawLog:
    """Read it.

    Raises:
        InputError: always, so far.
    """
    raise InputError("is not read yet", path=path)
