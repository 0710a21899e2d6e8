"""The page of pathologies, from their registry."""

from __future__ import annotations

from hnf_offline.detect.kinds import kinds
from hnf_offline.quantities import catalogue

_PAGE = """# Pathologies

Written by `python -m docs.generate` from the registry. What a report lists as wrong with a run beside its loss spikes
([which are told apart](concepts/spikes.md)): each with the first step and the layer at which it was seen, the numbers
that show it, and what can be done. All are looked for in hindsight, on checkpoints alone. `tests/detect/` holds a plant
of each kind that is found, mostly in a network that was really made sick, and a control that is nearly so and is not.

What is read from the log needs no checkpoint; a quantity is measured from the tier in brackets on
([tiers](concepts/tiers.md)). A kind that needs more than was measured is not told, which does not mean that it is
absent.

{parts}
"""


def pathologies_page() -> str:
    """Spell docs/pathologies.md.

    Returns:
        Markdown.
    """
    known = catalogue()
    parts = []
    for name, one in kinds().items():
        needs = [
            f"`{need}` ({known[need].tier})"
            if need in known
            else (need if " " in need else f"the log's `{need}`")
            for need in one.needs
        ]
        parts.append(
            f"## `{name}`\n\n- rule: {one.rule}\n- read from: {', '.join(needs)}\n- what to do: {one.action}"
        )
    return _PAGE.format(parts="\n\n".join(parts))
