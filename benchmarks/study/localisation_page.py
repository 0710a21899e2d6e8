"""Experiment 4 on the study's page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.study.injection import JUMPED, KINDS, RAMP_STEPS, RAMPED, SCALED
from benchmarks.study.localisation import STRETCHES, Finding, Named, findings
from benchmarks.study.tables import decimal, figure, table

SAID = {
    "ramp": f"the module's learning rate rises to {RAMPED:g} times over {RAMP_STEPS} steps",
    "jump": f"the module's learning rate is {JUMPED:g} times as high at once",
    "scale": f"the module's weights are multiplied by {SCALED:g} once",
    "dead": "the module's weights are set to zero and stay there",
    "nan": "one weight of the module becomes NaN; the next loss is NaN and the run ends",
}
#: Quantities that the first paragraph names of each kind.
TOLD = 3


def section(named: Sequence[Named]) -> Iterator[str]:
    """Spell the experiment, one kind of fault after the other.

    Yields:
        Paragraphs and tables.
    """
    runs = {one.run for one in named}
    settings = sorted({one.setting for one in named})
    yield "## Experiment 4: which layer is at fault"
    yield (
        f"{len(runs)} runs of {len(settings)} architectures ({', '.join(settings)}), with a fault in one module from "
        "one step on. Each quantity names, at every checkpoint, the layer where it is largest, or where it moved most "
        "from the median of all earlier checkpoints. Shares are of checkpoints, with 95 % bootstrap intervals over "
        "runs; found are runs in which it is right at two checkpoints in a row; * needs no second derivatives."
    )
    by_kind = {kind: [one for one in named if one.kind == kind] for kind in KINDS}
    yield " ".join(headline(kind, findings(members)) for kind, members in by_kind.items() if members)
    for kind, members in by_kind.items():
        if members:
            yield f"### A fault of the kind {kind}: {SAID[kind]}"
            yield _table(findings(members))


def headline(kind: str, found: Sequence[Finding]) -> str:
    """Say which quantities find a kind of fault, or that none does.

    A quantity finds it where the lower end of its share in some stretch lies above chance.

    Returns:
        One sentence.
    """
    sure = [
        one
        for one in found
        if any(share is not None and _above(share.low, one.chance) for share in one.shares)
    ]
    if not sure:
        return f"Nothing surely finds {kind}."
    best = sorted(sure, key=lambda one: (-one.found, np.median(one.soonest or (10**6,))))[:TOLD]
    told = ", ".join(
        f"{one.quantity.removesuffix(' *')} ({one.found} of {one.runs} runs"
        + (f", after {np.median(one.soonest):.0f} steps)" if one.soonest else ")")
        for one in best
    )
    return f"What finds {kind}: {told}."


def _above(low: float | None, chance: float) -> bool:
    return low is not None and low > chance


def _table(found: Sequence[Finding]) -> str:
    head = [
        "quantity",
        "runs",
        *(f"{begin} to {end - 1} steps after" for begin, end in STRETCHES),
        "chance",
        "found",
        "steps until then",
    ]
    rows = [
        [
            one.quantity,
            str(one.runs),
            *("-" if share is None else figure(share) for share in one.shares),
            decimal(one.chance),
            f"{one.found} of {one.runs}",
            f"{np.median(one.soonest):.0f}" if one.soonest else "-",
        ]
        for one in found
    ]
    return table(head, rows)
