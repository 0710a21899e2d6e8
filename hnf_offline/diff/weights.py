"""How far the weights of two runs are from each other, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hnf_offline.comparison import WeightDistance
from hnf_offline.diff.words import some

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.run.records import Checkpoint, Run

#: Common checkpoints at which weights are compared: first, last and evenly spaced ones between.
WEIGHT_CHECKPOINTS = 5


def weight_distances(
    run_a: Run, run_b: Run, profile: pl.DataFrame
) -> tuple[tuple[WeightDistance, ...], tuple[str, ...]]:
    """Measure ||W_A - W_B|| of every layer at a few common checkpoints.

    Returns:
        The distances by step, then depth, and sentences on what could not be compared.
    """
    from hnf_offline.errors import InputError
    from hnf_offline.run import formats

    by_step_b = {checkpoint.step: checkpoint for checkpoint in run_b.checkpoints}
    pairs = [(one, by_step_b[one.step]) for one in run_a.checkpoints if one.step in by_step_b]
    depth = _depths(profile)
    distances: list[WeightDistance] = []
    sentences: list[str] = []
    for a, b in _spread(pairs, WEIGHT_CHECKPOINTS):
        try:
            weights_a, weights_b = formats.load_weights(a), formats.load_weights(b)
        except InputError as error:
            sentences.append(f"Weights at step {a.step} could not be compared: {error}.")
            continue
        found, unmatched = _distances_at(a, weights_a, weights_b)
        order = {one.layer: place for place, one in enumerate(found)}
        distances += sorted(found, key=lambda one: (depth.get(one.layer, len(depth)), order[one.layer]))
        sentences += [sentence for sentence in unmatched if sentence not in sentences]
    return tuple(distances), tuple(sentences)


def _distances_at(
    checkpoint: Checkpoint, weights_a: Mapping[str, Any], weights_b: Mapping[str, Any]
) -> tuple[list[WeightDistance], list[str]]:
    """Sum the squared distances of all tensors of a layer, in float64.

    Returns:
        One distance a layer in the order of the file, and sentences on tensors without a counterpart.
    """
    import torch

    squares: dict[str, list[float]] = {}
    reshaped = []
    for name, tensor in weights_a.items():
        other = weights_b.get(name)
        if other is None or not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        if tensor.shape != other.shape:
            reshaped.append(name)
            continue
        layer = name.rsplit(".", 1)[0] if "." in name else name
        own = tensor.detach().double()
        sums = squares.setdefault(layer, [0.0, 0.0])
        sums[0] += float((own - other.detach().double()).square().sum())
        sums[1] += float(own.square().sum())
    found = [
        WeightDistance(checkpoint.step, layer, math.sqrt(apart), _ratio(math.sqrt(apart), math.sqrt(size)))
        for layer, (apart, size) in squares.items()
    ]
    sentences = []
    if reshaped:
        sentences.append(f"{some(reshaped, 'tensor')} with other shapes in A and B: not compared.")
    for label, names, others in (("A", weights_a, weights_b), ("B", weights_b, weights_a)):
        only = [name for name in names if name not in others]
        if only:
            sentences.append(f"{some(only, 'tensor')} only in {label}: not compared.")
    return found, sentences


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0.0:
        return 0.0 if numerator == 0.0 else math.inf
    return numerator / denominator


def _depths(profile: pl.DataFrame) -> dict[str, int]:
    return {str(layer): int(depth) for layer, depth in profile.select("layer", "depth").unique().iter_rows()}


def _spread(pairs: list[tuple[Checkpoint, Checkpoint]], count: int) -> list[tuple[Checkpoint, Checkpoint]]:
    if len(pairs) <= count:
        return pairs
    return [pairs[round(place * (len(pairs) - 1) / (count - 1))] for place in range(count)]
