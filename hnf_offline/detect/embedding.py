"""A gradient of an embedding that jumps while the other layers' do not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from hnf_offline.detect.kinds import kind
from hnf_offline.detect.measured import Measured, measured
from hnf_offline.detect.trailing import Floats, medians_at
from hnf_offline.findings import Pathology

#: Times its own median of the checkpoints before that it jumps, and the most that the other layers' do meanwhile.
JUMP, ALONE = 10.0, 3.0
#: Checkpoints that must come before, and those whose median is taken.
BEFORE, WINDOW = 3, 6

SPIKE = kind(
    "embedding-gradient-spike",
    rule=f"The gradient norm of an embedding is {JUMP:g} times its median of the {WINDOW} checkpoints before (at least "
    f"{BEFORE}), the median of the other layers' at most {ALONE:g} times theirs.",
    needs=("gradient.norm",),
    action="Scale the embedding's gradient down (GLM-130B: 0.1) or clip it alone; look for rare tokens in that step.",
)


def embedding_gradient(profile: pl.DataFrame) -> Iterator[Pathology]:
    """Find the jump of an embedding's gradient that foreruns a spike (Zeng et al. 2022, arXiv:2210.02414).

    Yields:
        Kind "embedding-gradient-spike", at most one a layer.
    """
    if profile.is_empty():
        return
    norms = profile.filter((pl.col("quantity") == "gradient.norm") & (pl.col("layer") != ""))
    embeddings = set(norms.filter(pl.col("kind") == "embedding")["layer"].to_list())
    each = list(measured(norms))
    others = [(one.steps, _jumps(one)) for one in each if one.layer not in embeddings]
    for one in each:
        if one.layer not in embeddings:
            continue
        jumps = _jumps(one)
        for row in np.flatnonzero(jumps >= JUMP):
            at = int(one.steps[row])
            rest = [values[steps == at] for steps, values in others]
            known = np.concatenate(rest) if rest else np.empty(0)
            known = known[np.isfinite(known)]
            if known.size and float(np.median(known)) <= ALONE:
                evidence = (
                    f"gradient norm is {one.values[row]:.3g}, {jumps[row]:.3g} times its median of the checkpoints "
                    f"before; that of the other layers {np.median(known):.2g} times."
                )
                yield SPIKE.at(one.layer, at, evidence)
                break


def _jumps(one: Measured) -> Floats:
    """Give the values over the median of the finite ones before them.

    Returns:
        One a row; NaN where there is none, or too little before it.
    """
    values = np.where(np.isfinite(one.values), one.values, np.nan)
    usual = medians_at(values, np.arange(values.size), WINDOW, BEFORE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(usual > 0, values / usual, np.nan))
