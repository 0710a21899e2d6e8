"""Any text whose lines say `key=value` or `key: value`."""

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
