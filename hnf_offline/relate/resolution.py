"""What checkpoints this far apart can know of spikes this close together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hnf_offline.relate.events import clusters

#: Gap between checkpoints over the distance between spikes, up to which the stability alarm announced that share of the
#: spikes within 80 steps, and what chance would have. The 74 test and fresh runs of the study of three spikes up,
#: each read with all its checkpoints and with every 2nd to 32nd (reports/study, "By the distance between spikes").
ANNOUNCED: tuple[tuple[float, float, float], ...] = (
    (0.16, 0.50, 0.35),
    (0.33, 0.40, 0.28),
    (0.67, 0.22, 0.16),
    (1.33, 0.05, 0.04),
    (float("inf"), 0.01, 0.01),
)
#: Up to this share of the distance checkpoints are close enough for nothing to be said of them.
CLOSE = 0.33
#: Fewer spikes have no distance to speak of.
FEWEST = 3


def too_sparse(gap: float | None, onsets: Sequence[int]) -> str:
    """Say what is lost where checkpoints lie too far apart for the spikes of a run.

    Args:
        gap: steps between checkpoints, None where there are fewer than two.
        onsets: of the spikes; those within an aftershock count with their spike.

    Returns:
        One sentence; "" where checkpoints are close enough, or where there are too few spikes to say.
    """
    starts = clusters(sorted(onsets), -(2**62), 2**62)
    if not gap or len(starts) < FEWEST:
        return ""
    distance = float(np.median(np.diff(starts)))
    if gap <= CLOSE * distance:
        return ""
    share = next(share for upper, share, _ in ANNOUNCED if gap <= upper * distance)
    dense = ANNOUNCED[0][1]
    return (
        f"Checkpoints every {gap:g} steps are too far apart for spikes every {distance:g}: at such gaps "
        f"{100 * share:.0f} % of the spikes of our study were announced, {100 * dense:.0f} % with six or more "
        "checkpoints between spikes."
    )
