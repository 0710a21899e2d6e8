"""Links out of a run where a checkpoint would be read: found before any layout opens a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from hnf_offline.run.paths import leads_out

#: Files and folders of checkpoints that no layout reads; links among them may lead anywhere.
_UNREAD = re.compile(r"(?:tokenizer|vocab|merges|special_tokens|added_tokens|spiece|README|\.git).*")
#: Folders that layouts look into from the folder above them.
_PARTS = re.compile(r"(?:pytorch_model_fsdp|optimizer|mp_rank|model|optim|train|weights)[\w.-]*")


def outward_links(entry: Path, root: Path) -> list[Path]:
    """Find the links that a layout would follow out of the run if it looked at an entry.

    Args:
        entry: a file or folder of the run.
        root: the run directory; a link there is the user's own.

    Returns:
        The entry itself where it leads out, else such links in the folder and in the parts of a checkpoint in it.
    """
    if entry == root and not entry.is_dir():
        return []
    if entry != root and entry.is_symlink() and leads_out(entry, root):
        # What leads nowhere is only missing.
        return [entry] if entry.exists() else []
    return list(_links(entry, root, deep=entry != root))


def _links(folder: Path, root: Path, *, deep: bool) -> Iterator[Path]:
    try:
        with os.scandir(folder) as children:
            listed = sorted(children, key=lambda child: child.name)
    except OSError:
        return
    for child in listed:
        path = folder / child.name
        try:
            is_folder = child.is_dir()
        except OSError:
            continue
        if _UNREAD.fullmatch(child.name) or (is_folder and not _PARTS.fullmatch(child.name)):
            continue
        if child.is_symlink():
            if leads_out(path, root) and path.exists():
                yield path
        elif is_folder and deep:
            yield from _links(path, root, deep=False)
