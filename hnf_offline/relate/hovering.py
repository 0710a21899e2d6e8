"""Whether an alarm means anything in a run: not where S stays at the edge of stability for long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Share of the measured steps from which on a run counts as one that hovers.
HOVERS = 0.2
#: What the stability alarm did in such runs of the study and in the others, test seeds (reports/study, "By regime"):
#: precision, precision by chance, false alarms per 1000 steps.
HOVERING, OTHERS = (0.50, 0.46, 2.7), (0.87, 0.58, 0.5)


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
    precision, chance, _ = HOVERING
    return (
        f"S hovers at the edge for {100 * share:.0f} % of the measured steps; in such runs of our study alarms were "
        f"right in {100 * precision:.0f} % of the cases where chance is right in {100 * chance:.0f} %: no warning is "
        "possible in this regime."
    )
