"""Runs whose alarms and scores are planted, as the study would have analysed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from benchmarks.study.analysis import Analysed
from benchmarks.study.families import FAMILIES


def run(
    onsets: Sequence[int],
    alarms: Sequence[int],
    *,
    rule: str = "stability alarm",
    first: int = 100,
    last: int = 900,
    measured: int | None = None,
    gap: int = 8,
    score: Sequence[float] | None = None,
    seed: int = 0,
    family: str = "A",
    failed: bool = False,
) -> Analysed:
    case = replace(FAMILIES[family].cases(seed)[0], every=gap)
    at = list(range(first, (measured or last) + 1, gap))
    return Analysed(
        case=case,
        first=first,
        last=last,
        onsets=tuple(onsets),
        failed=failed,
        gap=gap,
        alarms={rule: list(alarms)},
        at={rule: at},
        resolution={rule: gap},
        baseline={rule: False},
        scores=pl.DataFrame({"step": at, "S": score or [float(step) for step in at]}),
        log=pl.DataFrame({"step": list(range(1, last + 1)), "loss": [1.0] * last}),
    )
