"""Shapes and types of a checkpoint's tensors: from its portrait, or from headers where no tensor was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hnf_offline.check.series import Series
from hnf_offline.errors import InputError
from hnf_offline.run.formats.safetensors_file import read_header
from hnf_offline.run.records import Checkpoint

Layout = Mapping[str, tuple[tuple[int, ...], str]]

_TYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def layouts(series: Series) -> tuple[dict[int, Layout], int]:
    """Collect the shape and type of every tensor.

    Returns:
        Step -> name -> (shape, type), and for how many checkpoints that takes reading tensors that were not read.
    """
    if series.portraits is not None:
        return {
            one.step: {name: (tensor.shape, tensor.dtype) for name, tensor in one.tensors.items()}
            for one in series.portraits
        }, 0
    found = {}
    for checkpoint in series.run.checkpoints:
        layout = _from_headers(checkpoint)
        if layout is not None:
            found[checkpoint.step] = layout
    return found, len(series.run.checkpoints) - len(found)


def usual(layouts: Mapping[int, Layout]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Find the shape and type that most checkpoints give each tensor.

    Returns:
        Name -> (shape, type), of tensors that are in at least half of the checkpoints; the earlier of two
        that are as frequent.
    """
    votes: dict[str, Counter[tuple[tuple[int, ...], str]]] = {}
    for layout in layouts.values():
        for name, kind in layout.items():
            votes.setdefault(name, Counter())[kind] += 1
    return {
        name: vote.most_common(1)[0][0] for name, vote in votes.items() if 2 * vote.total() >= len(layouts)
    }


def _from_headers(checkpoint: Checkpoint) -> Layout | None:
    if not checkpoint.weight_files or any(file.suffix != ".safetensors" for file in checkpoint.weight_files):
        return None
    layout: dict[str, tuple[tuple[int, ...], str]] = {}
    try:
        for file in checkpoint.weight_files:
            for name, entry in read_header(file).items():
                if name != "__metadata__":
                    shape = tuple(int(length) for length in entry["shape"])
                    layout[name] = shape, _TYPES.get(str(entry["dtype"]), str(entry["dtype"]))
    except (InputError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return layout
