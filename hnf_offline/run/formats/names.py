"""Steps in the names of files and folders."""

from __future__ import annotations

import re
from pathlib import Path

_KEYED = re.compile(
    r"(?:^|[^a-z])(?:global_?step|step|iteration|iter|checkpoint|ckpt|update)s?[-_=]?(\d+)(?![\d.]*[a-z])",
    re.IGNORECASE,
)
#: No training has so many steps; 352 digits in a name are not a step.
_MOST_DIGITS = 15
_PLAIN = re.compile(r"\d+")
#: Files of a run's own naming: model_500, net-500, weights.500, model010000; and those that count epochs.
_NUMBERED = re.compile(
    r"(?:^|.*[-_.])(?:model|net|network|weights?|state|params|snapshot|save)[-_.=]?(\d{1,15})", re.IGNORECASE
)
_EPOCH = re.compile(r"(?:^|.*[^a-z])(?:epoch|ep)s?[-_.=]?(\d{1,15})", re.IGNORECASE)


def step_in_name(stem: str) -> int | None:
    """Read the step from `step-000352`, `checkpoint-100`, `global_step20`, `epoch=1-step=40` or `352`.

    Args:
        stem: a folder's name, or a file's without its suffix.

    Returns:
        The step, None where the name has none.
    """
    keyed = _KEYED.findall(stem)
    number = keyed[-1] if keyed else stem if _PLAIN.fullmatch(stem) else ""
    return int(number) if 0 < len(number) <= _MOST_DIGITS else None


def number_in_name(stem: str) -> int | None:
    """Read the number from `model_500` or `weights010000`: what loops of a user's own call their files.

    Args:
        stem: a file's name without its suffix.

    Returns:
        The number, None where the name ends in none.
    """
    found = _NUMBERED.fullmatch(stem)
    return int(found.group(1)) if found else None


def epoch_in_name(stem: str) -> int | None:
    """Read the epoch from `model_epoch3` or `epoch=3`.

    Args:
        stem: a file's name without its suffix.

    Returns:
        The epoch, None where the name ends in none.
    """
    found = _EPOCH.fullmatch(stem)
    return int(found.group(1)) if found else None


def step_in_path(entry: Path, root: Path) -> int | None:
    """Read the step from the nearest folder name that has one, from an entry up to the run directory.

    Args:
        entry: a file or folder of the run.
        root: the run directory; its own name counts only where it is the entry.

    Returns:
        The step, None where no name has one.
    """
    step = step_in_name(entry.stem if entry.is_file() else entry.name)
    for folder in entry.parents:
        if step is not None or root in {folder, entry}:
            break
        step = step_in_name(folder.name)
    return step
