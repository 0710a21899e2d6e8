"""Weight files that are the same in different steps, found without reading a tensor: by size and sampled blocks."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

from hnf_offline.check.registry import Outcome
from hnf_offline.check.series import Series, counted, some
from hnf_offline.findings import Fault
from hnf_offline.run.remote import identity

_BLOCK = 4096
#: Blocks read of one checkpoint's files together, and at least of each file.
_BLOCKS, _LEAST_BLOCKS = 16, 2
#: Files that look the same are compared as a whole while this many bytes last.
_COMPARED = 2**28
_CHUNK = 2**20


def look(series: Series, kind: str, remedy: str) -> Outcome:
    """Group the weight files of all checkpoints by size and by a hash of blocks spread over them.

    Args:
        series: the run.
        kind: the check that asks.
        remedy: what to do about it.

    Returns:
        A danger for each group of checkpoints with the same files, a warning where not every byte was compared.
    """
    prints: dict[tuple[tuple[int, str], ...], list[int]] = defaultdict(list)
    files: dict[int, tuple[Path, ...]] = {}
    unread = far = 0
    for checkpoint in series.run.checkpoints:
        weights = checkpoint.weight_files
        if any(identity(file) is not None for file in weights):
            far += 1  # a far file is a placeholder here
            continue
        try:
            blocks = max(_LEAST_BLOCKS, _BLOCKS // max(1, len(weights)))
            print_ = tuple((file.stat().st_size, _sampled(file, blocks)) for file in weights)
        except OSError:
            unread += 1
            continue
        files[checkpoint.step] = weights
        prints[print_].append(checkpoint.step)
    faults = []
    left = _COMPARED
    for print_, steps in prints.items():
        if len(steps) < 2:
            continue
        # Files that never change are a frozen model saved again and again; that is told by the tensors.
        size = sum(length for length, _ in print_)
        whole = size * len(steps) <= left
        if whole:
            left -= size * len(steps)
            if len({_hash(files[step]) for step in steps}) > 1:
                continue
        said = "byte for byte" if whole else f"in all of {_BLOCKS} sampled blocks ({size:,} bytes in all)"
        evidence = f"{counted(steps)} have the same weight files, {said}"
        severity = "danger" if whole else "warning"
        faults.append(Fault(kind, severity, steps[1], series.path_of(steps[1]), evidence, remedy))
    skipped = f"the files of {some(unread, 'checkpoint')} cannot be read" if unread else ""
    if far:
        skipped = f"the files of {some(far, 'checkpoint')} are far away; without --cheap they are read"
    looked = f"sampled blocks of the files of {some(len(files), 'checkpoint')}" if files else ""
    return Outcome(tuple(faults), looked, skipped)


def _sampled(file: Path, blocks: int) -> str:
    state = hashlib.blake2b(digest_size=16)
    size = file.stat().st_size
    with file.open("rb") as opened:
        for place in range(blocks):
            opened.seek(max(0, size - _BLOCK) * place // max(1, blocks - 1))
            state.update(opened.read(_BLOCK))
    return state.hexdigest()


def _hash(files: tuple[Path, ...]) -> str:
    state = hashlib.blake2b(digest_size=16)
    try:
        for file in files:
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK):
                    state.update(chunk)
    except OSError:
        return f"unread {files[0]}"
    return state.hexdigest()
