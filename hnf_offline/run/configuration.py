"""Every hyper-parameter a run left behind, flattened: "optimizer.learning_rate" -> 0.01."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hnf_offline.errors import InputError
from hnf_offline.run import formats
from hnf_offline.run.formats.safetensors_file import read_json
from hnf_offline.run.records import Checkpoint, Run

#: Bounds that keep a hostile or careless file from filling memory and reports.
_DEEPEST = 6
_MOST_ENTRIES = 2_000
_LONGEST_TEXT = 500
_MOST_VISITED = 20_000
#: Whole numbers beyond this are no setting; some thousand digits cannot even be printed.
_LARGEST = 1 << 64

#: Short names of optimizer settings -> the field's words.
_WORDS = {"lr": "learning_rate", "wd": "weight_decay", "initial_lr": "initial_learning_rate"}

#: How an optimizer ran, not what it computed.
_MECHANICS = {"foreach", "fused", "capturable", "differentiable", "maximize", "params", "param_names"}


def configuration(path: Path, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the hyper-parameters of a run without reading a tensor.

    Args:
        path: the run directory.
        sections: "model", "optimizer", "training" as the checkpoint's format and config.json give them.

    Returns:
        Dotted name -> number, text, flag or list; RUN.json comes under "run.".
    """
    found = dict(sections)
    described = read_json(path / "RUN.json", run=path) if path.is_dir() else {}
    if described:
        found["run"] = described
    flat: dict[str, Any] = {}
    for name, value in flatten(found):
        if len(flat) >= _MOST_ENTRIES:
            break
        section, _, rest = name.partition(".")
        if section == "optimizer":
            if rest.split(".")[0] in _MECHANICS:
                continue
            flat[f"optimizer.{_WORDS.get(rest, rest)}"] = value
        else:
            flat[name] = value
    return flat


def full_configuration(run: Run) -> dict[str, Any]:
    """Give a run's hyper-parameters with those that only an optimizer file knows (this loads one).

    Returns:
        `run.configuration`, and the first saved optimizer's settings where it lacks them.
    """
    flat = dict(run.configuration)
    if not any(name.startswith("optimizer.") for name in flat):
        flat |= optimizer_configuration(run.checkpoints)
    return flat


def optimizer_configuration(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """Read the settings of the first param_group of the first readable optimizer state.

    Returns:
        "optimizer.learning_rate" and so on; empty where no optimizer state can be read.
    """
    for checkpoint in checkpoints:
        try:
            raw = formats.load_optimizer(checkpoint)
        except InputError:
            continue
        if raw is not None and raw.groups:
            group = {key: value for key, value in raw.groups[0].items() if key not in _MECHANICS}
            return configuration(Path(), {"optimizer": group}) if group else {}
    return {}


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested mappings, in bounded time even where they hold themselves.

    Yields:
        Dotted name and value of every number, text, flag and short list; None and deeper ones are left out.
    """
    # Level by level, so that one branch without end does not hide the others.
    waiting: deque[tuple[str, Any, int]] = deque([(prefix, value, 0)])
    for _ in range(_MOST_VISITED):
        if not waiting:
            return
        name, one, depth = waiting.popleft()
        if isinstance(one, Mapping):
            if depth < _DEEPEST:
                waiting += [
                    (f"{name}.{key}" if name else str(key), inner, depth + 1)
                    for key, inner in islice(one.items(), max(0, _MOST_VISITED - len(waiting)))
                    if isinstance(key, str | int)
                    and len(name) + len(str(key)[:_LONGEST_TEXT]) < _LONGEST_TEXT
                ]
        elif isinstance(one, list | tuple):
            if _is_short(one):
                yield name, list(one)
        elif isinstance(one, str):
            yield name, one[:_LONGEST_TEXT]
        elif isinstance(one, bool | float) or (isinstance(one, int) and abs(one) < _LARGEST):
            yield name, one


def _is_short(value: Any) -> bool:
    # Whether a list is spelled in few characters. One of ten lists of ten lists ... would be spelled for ever.
    waiting = [value]
    seen = 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if isinstance(one, Mapping):
            waiting += islice(one.keys(), _LONGEST_TEXT)
            waiting += islice(one.values(), _LONGEST_TEXT)
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += islice(one, _LONGEST_TEXT)
        elif isinstance(one, int) and abs(one) >= _LARGEST:
            return False
        if seen + len(waiting) > _LONGEST_TEXT:
            return False
    try:
        return len(json.dumps(value, default=str)) <= _LONGEST_TEXT
    except (TypeError, ValueError, RecursionError):  # a key that is no name
        return False
