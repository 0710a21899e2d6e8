"""What a measurement costs in forward passes, counted where it is spent, so that a plan can be held against it.

Unit: one forward pass of all replayed rows, without a graph. Work is counted (products, not seconds), so the figure
is the same on every machine. The count travels in a context variable: each process and thread has its own, and where
nobody counts nothing happens. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

#: Kinds of work.
Work = Literal["forward", "gradient", "graph", "whole product", "layer product", "layer difference", "map"]

#: What a unit of each kind takes, in forward passes of the same rows; `python -m benchmarks.plan` prints what they are.
#: These lie between those of a decoder of d = 64 and a GPT-2 of d = 96 on one CPU core. A product or difference of one
#: layer: times the share of the model at or behind it. Maps: of the few short sequences they look at (1070, 780, 490,
#: 340 on decoders of d = 64 to 256); what happens within them is not counted finer.
FORWARDS: dict[Work, float] = {
    "forward": 1.0,
    "gradient": 2.0,
    "graph": 2.5,
    "whole product": 4.5,
    "layer product": 2.7,
    "layer difference": 1.8,
    "map": 600.0,
}


class Effort:
    """What was spent.

    Attributes:
        units: kind -> units times rows; of layers, not yet shortened by their share.
        rows: rows that would have gone forward through the model for all of it.
    """

    def __init__(self) -> None:
        self.units: Counter[Work] = Counter()
        self.rows = 0.0

    def forwards(self, rows: int) -> float:
        """Give all of it in forward passes of a number of rows.

        Returns:
            Forward passes.
        """
        return self.rows / max(1, rows)


_effort: ContextVar[Effort | None] = ContextVar("effort", default=None)


@contextmanager
def counted() -> Iterator[Effort]:
    """Count what is spent inside; a count outside of it gets it at the end.

    Yields:
        The count, which grows.
    """
    effort = Effort()
    token = _effort.set(effort)
    try:
        yield effort
    finally:
        _effort.reset(token)
        outer = _effort.get()
        if outer is not None:
            outer.rows += effort.rows
            outer.units.update(effort.units)


def spend(work: Work, rows: int, *, times: float = 1.0, share: float = 1.0) -> None:
    """Tell what was just spent.

    Args:
        work: what was done.
        rows: rows of all micro-batches that it was done on.
        times: how often.
        share: of the model that it walked.
    """
    effort = _effort.get()
    if effort is not None:
        effort.units[work] += times * rows  # type: ignore[assignment]
        effort.rows += FORWARDS[work] * times * share * rows
