"""The folders below a folder, in bounded time and never out of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

#: Entries that a walk looks at; a larger tree is no run, and what comes after is not seen.
MOST_ENTRIES = 100_000
#: Folders that hold programs or data rather than logs.
_NOT_LOGS = {"node_modules", "site-packages", "__pycache__", "venv"}


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder with the files in it and the names of its folders, by name; without what is hidden or leads out."""

    path: Path
    files: tuple[Path, ...]
    folders: tuple[str, ...]


def walk(root: Path, deepest: int, without: Collection[Path] = ()) -> Iterator[Folder]:
    """Go through a folder and those below it, each before what is in it.

    Links are followed where they stay below the root, and each folder is gone through once.

    Args:
        root: where to begin.
        deepest: levels below the root.
        without: folders that are not gone into.

    Yields:
        The folders.
    """
    try:
        real_root = root.resolve()
        avoided = {folder.resolve() for folder in without} - {real_root}
    except (OSError, RuntimeError):
        return
    seen: set[Path] = set()
    waiting = [(root, 0)]
    entries = 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            real = folder.resolve()
            if real in seen or real in avoided:
                continue
            seen.add(real)
            children = []
            with os.scandir(folder) as found:
                for child in found:
                    entries += 1
                    if entries > MOST_ENTRIES:
                        break
                    children.append(child)
        except (OSError, RuntimeError, ValueError):
            continue
        files, folders = [], []
        # Links last: a folder is known by its own name where a link leads to it too.
        for child in sorted(children, key=lambda one: (one.is_symlink(), one.name)):
            if child.name.startswith("."):
                continue
            try:
                if not _stays(child, real_root):
                    continue
                if child.is_dir():
                    folders.append(child.name)
                elif child.is_file():
                    files.append(folder / child.name)
            except (OSError, RuntimeError, ValueError):
                continue
        yield Folder(folder, tuple(files), tuple(folders))
        if depth < deepest and entries <= MOST_ENTRIES:
            waiting += [(folder / name, depth + 1) for name in reversed(folders) if name not in _NOT_LOGS]


def _stays(child: os.DirEntry[str], real_root: Path) -> bool:
    return not child.is_symlink() or Path(child.path).resolve().is_relative_to(real_root)
