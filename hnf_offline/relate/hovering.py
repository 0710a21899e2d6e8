"""Whether an alarm means anything in a run: not where S stays at the edge of stability for long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Share of the measured steps from which on a run counts as one that hovers.
HOVERS = 0.2
#: How often the stability alarm was right in such runs and in the others, and how often as many alarms at random are:
#: the test and fresh runs of the study, leads of up to 80 steps (reports/study, "By regime").
HOVERING, OTHERS = (0.38, 0.35), (0.77, 0.54)


def hovering_share(regimes: Sequence[Mapping[str, Any]]) -> float:
    """Give the share of the measured steps in which S hovers between 0.8 and 1.3.

    Args:
        regimes: {"start", "end", "regime"} of each stretch.

    Returns:
        The share; 0 where S was not measured.
    """
    steps = dict.fromkeys(("hover", "all"), 0)
    for stretch in regimes:
        length = int(stretch["end"]) - int(stretch["start"])
        steps["all"] += length
        steps["hover"] += length if stretch["regime"] == "hover" else 0
    return steps["hover"] / steps["all"] if steps["all"] else 0.0


def no_warning(regimes: Sequence[Mapping[str, Any]]) -> str:
    """Say that no warning can be relied on in a run that hovers at the edge.

    Returns:
        One sentence; "" where the run does not hover for a fifth of its measured steps.
    """
    share = hovering_share(regimes)
    if share <= HOVERS:
        return ""
    (right, luck), (elsewhere, luck_elsewhere) = HOVERING, OTHERS
    return (
        f"S hovers at the edge for {100 * share:.0f} % of the measured steps: no warning is possible in this regime. "
        f"In such runs of our study {100 * right:.0f} % of the alarms were right, hardly more than by "
        f"chance ({100 * luck:.0f} %); in the others {100 * elsewhere:.0f} % ({100 * luck_elsewhere:.0f} % by chance)."
    )
