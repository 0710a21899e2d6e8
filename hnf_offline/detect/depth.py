"""Gradients that vanish or explode from the last block of a stack to the first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from hnf_offline.detect.kinds import kind
from hnf_offline.detect.measured import measured
from hnf_offline.detect.trailing import Floats
from hnf_offline.findings import Pathology

DECADES = 3.0  # gradient norms of the first and the last block this far apart
BLOCKS = 4
CHECKPOINTS = 3  # in a row, or all there are

_RULE = (
    f"The line through log10 of the blocks' gradient norms {{}} by {DECADES:g} decades or more from the first to the "
    f"last of at least {BLOCKS} blocks, at {CHECKPOINTS} checkpoints in a row (all, where there are fewer)."
)
_ACTION = "Normalise before each block, or scale each residual branch by 1 / sqrt(2 blocks) at the start."
VANISHING = kind("gradient-vanishing", rule=_RULE.format("rises"), needs=("gradient.norm",), action=_ACTION)
EXPLODING = kind("gradient-exploding", rule=_RULE.format("falls"), needs=("gradient.norm",), action=_ACTION)


def gradient_over_depth(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Find stacks of blocks whose gradients differ by orders of magnitude between their ends.

    The gradient norm of a block is the root of its layers' summed squares. A stack is all that stands before a
    block's number: "model.layers", "encoder.block".

    Yields:
        Kinds "gradient-vanishing" and "gradient-exploding", at most one of each a stack, which is their layer.
    """
    for stack, norms in _stacks(profile).items():
        steps = sorted(norms)
        fits = [_fit(norms[step]) for step in steps]
        decades = np.array([np.nan if fit is None else fit[0] for fit in fits])
        needed = min(CHECKPOINTS, int(np.isfinite(decades).sum()))
        for which, beyond in ((VANISHING, decades >= DECADES), (EXPLODING, decades <= -DECADES)):
            held = np.lib.stride_tricks.sliding_window_view(beyond, needed).all(axis=1) if needed else beyond
            for row in np.flatnonzero(held)[:1]:
                fit = fits[row]
                assert fit is not None
                _, first, last, low, high = fit
                evidence = (
                    f"gradient norm {low:.2g} in block {first} and {high:.2g} in block {last}: {decades[row]:+.1f} "
                    f"decades over the depth, {abs(decades[beyond]).max():.1f} at most in {int(beyond.sum())} of "
                    f"{decades.size} checkpoints."
                )
                yield which.at(stack, steps[row], evidence)


def _stacks(profile: pl.DataFrame) -> Mapping[str, Mapping[int, Mapping[int, float]]]:
    """Sum the squared gradient norms of each block.

    Returns:
        Stack -> step -> number of the block -> sum.
    """
    found: dict[str, dict[int, dict[int, float]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(float))
    )
    if not profile.is_empty():
        for series in measured(profile.filter(pl.col("quantity") == "gradient.norm")):
            block = re.search(r"(?:^|\.)(\d+)(?:\.|$)", series.layer)
            if block:
                stack = found[series.layer[: block.start()]]
                for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                    stack[step][int(block[1])] += value * value
    return found


def _fit(squares: Mapping[int, float]) -> tuple[float, int, int, float, float] | None:
    """Fit a line through log10 of the norms over the blocks.

    Returns:
        Its change in decades, the first and the last block, and their norms; None for too few blocks with a gradient.
    """
    numbers: Floats = np.array(sorted(squares), dtype=np.float64)
    norms = np.sqrt(np.array([squares[int(number)] for number in numbers]))
    usable = np.isfinite(norms) & (norms > 0)
    if usable.sum() < BLOCKS:
        return None
    numbers, norms = numbers[usable], norms[usable]
    slope = float(np.polyfit(numbers, np.log10(norms), 1)[0])
    first, last = int(numbers[0]), int(numbers[-1])
    return slope * (last - first), first, last, float(norms[0]), float(norms[-1])
