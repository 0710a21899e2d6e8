"""The far runs that are open, by the folder that stands for each; all of them go when the program ends."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hnf_offline.errors import STANDS_FOR
from hnf_offline.run.records import Checkpoint, Skipped
from hnf_offline.run.remote.skeleton import PREFIX, RESIDENT, Skeleton

_OPEN: dict[Path, Skeleton] = {}


def open_address(address: str) -> tuple[Path, list[Skipped]]:
    """Open a far run.

    Args:
        address: s3://bucket/run and the like.

    Returns:
        The folder or file on this disk that stands for it, and what was left out.

    Raises:
        InputError: if it cannot be read, or does not fit on this disk.
        MissingExtraError: if a package for it is not installed.
    """
    if not _OPEN:
        _remove_leftovers()
        atexit.register(close_all)
    skeleton = Skeleton(address)
    _OPEN[skeleton.folder] = skeleton
    return skeleton.path, skeleton.skipped


def close_all() -> None:
    """Remove everything of all far runs from this disk; their records cannot be read any more."""
    while _OPEN:
        folder, skeleton = _OPEN.popitem()
        skeleton.close()
        STANDS_FOR.pop(str(folder), None)


@contextmanager
def available(group: Path, files: Iterable[Path]) -> Iterator[None]:
    """Have some files of a checkpoint on this disk while they are read; nothing to do for a local run.

    Args:
        group: the checkpoint's path.
        files: its files that are needed.

    Yields:
        Nothing.

    Raises:
        InputError: if they cannot be fetched.
    """
    skeleton = _of(group)
    if skeleton is None:
        yield
        return
    skeleton.fill(group, files)
    try:
        yield
    finally:
        skeleton.release(group)


def whole(file: Path) -> Path:
    """Have a file of a far run on this disk until the program ends: batches that a run.toml names.

    Returns:
        The same path.
    """
    skeleton = _of(file)
    if skeleton is not None:
        skeleton.fill(file, [file])
    return file


def read_range(file: Path, start: int, length: int) -> bytes | None:
    """Read a part of a file that is not on this disk.

    Returns:
        The bytes; None where the file is here and can be read as usual.

    Raises:
        InputError: if it cannot be read.
    """
    skeleton = _of(file)
    if skeleton is None or not skeleton.is_placeholder(file):
        return None
    return skeleton.read(file, start, start + length)


def identity(file: Path) -> str | None:
    """Say what a far file's content is known by: its size, and the version or time that its server tells.

    Returns:
        A text, another one each time where the server tells neither; None for a file of a local run.
    """
    skeleton = _of(file)
    if skeleton is None:
        return None
    return skeleton.version(file) or uuid.uuid4().hex


def check_room(path: Path, checkpoints: Iterable[Checkpoint]) -> None:
    """Check beforehand that the disk can hold as many checkpoints as are in use at a time.

    Raises:
        InputError: if it cannot.
    """
    skeleton = _of(path)
    if skeleton is not None:
        points = list(checkpoints)
        skeleton.check_room(skeleton.largest(one.files for one in points) * min(RESIDENT, len(points)))


def _of(path: Path) -> Skeleton | None:
    if not _OPEN:
        return None
    return next((one for folder, one in _OPEN.items() if path.is_relative_to(folder)), None)


def _remove_leftovers() -> None:
    # Of this user's programs that were killed: their folders are named after processes that are gone.
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        found = re.fullmatch(rf"{PREFIX}(\d+)-\w+", folder.name)
        try:
            if found is None or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            os.kill(int(found.group(1)), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, AttributeError, OverflowError):
            continue
