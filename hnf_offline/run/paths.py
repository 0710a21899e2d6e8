"""Paths that files name: inside the folder they belong to, or anywhere where the user named the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hnf_offline.errors import InputError


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
    try:
        leads_inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        leads_inside = False
    if not leads_inside:
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
