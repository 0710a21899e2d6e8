"""Paths that files name: they stay inside the folder they belong to."""

from __future__ import annotations

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
