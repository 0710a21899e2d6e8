"""Paths that files name: inside the folder they belong to, or anywhere where the user named the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from hnf_offline.errors import InputError

#: What is said of a link that leads out of the run, and what to do about it.
OUTWARD = "is a link out of the run, which is not followed"
OUTWARD_REMEDY = "copy what it leads to into the run (cp -rL), or name the folder it leads to"


def status_of(path: Path) -> os.stat_result:
    """Look at a file before it is opened: a pipe would be waited for, a device read for ever.

    Args:
        path: the file.

    Returns:
        Its size and times.

    Raises:
        InputError: when it is not there, or is no file.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({getattr(error, 'strerror', error)})", path=path) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError("is not a file", path=path, remedy="remove it, or name the file itself")
    return status


def leads_out(path: Path, run: Path) -> bool:
    """Tell whether a path below a run leads out of it by symbolic links: a run is read, not what it points at.

    The Hugging Face cache keeps a revision as links to files beside it; those belong to it.

    Args:
        path: a file or folder as it was found below the run.
        run: the run directory that the user named; a link there is the user's own.

    Returns:
        True for a link out of the run and for one that leads to itself.
    """
    try:
        room = run.resolve()
        if room.parent.name == "snapshots" and (room.parent.parent / "blobs").is_dir():
            room = room.parent.parent
        return not path.resolve().is_relative_to(room)
    except (OSError, RuntimeError, ValueError):
        return True


def inside(folder: Path, name: str, *, named_by: Path) -> Path:
    """Resolve a path that a file names, refusing every way out of its folder.

    Absolute paths, `..` and symbolic links are followed to the end and compared with the real folder.

    Args:
        folder: the folder the path is relative to.
        name: the path as the file spells it.
        named_by: the file that names it, for the error message.

    Returns:
        `folder / name`, not resolved, so that it reads as the user wrote it.

    Raises:
        InputError: when the path leads outside of the folder.
    """
    if leads_out(folder / name, folder):
        raise InputError(
            f"it names {name!r}, which leads outside of {folder}",
            path=named_by,
            remedy="copy the files into the folder (cp -rL follows links) and name them relative to it",
        )
    return folder / name


def beside(folders: Sequence[Path], name: str, *, named_by: Path) -> Path:
    """Find a path that a user's own file names: absolute, or in the first of some folders that has it.

    Args:
        folders: where to look, in order.
        name: the path as the file spells it.
        named_by: the file that names it, for the error message.

    Returns:
        The path of something that exists.

    Raises:
        InputError: when there is no such file in any of the folders.
    """
    for folder in folders:
        try:
            if (folder / name).exists():
                return folder / name
        except (OSError, ValueError):
            break
    raise InputError(
        f"it names {name!r}, which is not there (looked in {' and '.join(map(str, dict.fromkeys(folders)))})",
        path=named_by,
        remedy="mend the name, or give the whole path",
    )
