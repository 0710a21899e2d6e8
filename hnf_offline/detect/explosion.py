"""The largest change of a loss from one row to the next, in units of the noise of the changes before it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hnf_offline.detect.trailing import SIGMA_PER_MAD, Floats, trailing_median
from hnf_offline.quantities.loss_curve import explosion_score

#: Rows that the trailing noise is taken of, and fewest of them.
NOISE_ROWS, FEWEST = 60, 10


def largest_explosion(steps: NDArray[np.int64], loss: Floats) -> dict[str, Any] | None:
    """Find the row with the highest explosion score.

    Args:
        steps: ascending.
        loss: one a step, finite.

    Returns:
        Keys "step", "score" and "change"; None where no noise is known.
    """
    # The rows before t: the median of |change - median| over up to 60 of them, at least 10.
    change = np.diff(loss, prepend=np.nan)
    change[0] = 0.0
    centre = trailing_median(change, NOISE_ROWS, FEWEST)
    sigma = SIGMA_PER_MAD * trailing_median(np.abs(change - np.nan_to_num(centre)), NOISE_ROWS, FEWEST)
    score = explosion_score(loss, np.where(sigma > 0, sigma, np.nan))
    if not np.isfinite(score).any():
        return None
    row = int(np.nanargmax(score))
    return {"step": int(steps[row]), "score": float(score[row]), "change": float(change[row])}
