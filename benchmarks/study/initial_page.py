"""Experiment 5 on the study's page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.study.initial import (
    BETTER,
    BLEW_UP,
    BLOWN_GRADIENT,
    BLOWN_LOSS,
    FAILED,
    LABELS,
    LAST_STEPS,
    NORMS,
    Begun,
    Ranked,
    ranked,
)
from benchmarks.study.tables import figure, table

MASS = "near-unit mass"
KNOWS_THE_RATE = "S after step 10, at the peak's rate"
NO_NORM = "no norm *"
SAID = {
    BLEW_UP: f"the loss passed {BLOWN_LOSS:g} or the gradient norm {BLOWN_GRADIENT:g}, or was not finite",
    FAILED: f"it blew up, or its last {LAST_STEPS} losses are not {BETTER:g} better than guessing on average",
}


def section(runs: Sequence[Begun]) -> Iterator[str]:
    """Spell the experiment.

    Yields:
        Paragraphs and tables.
    """
    yield "## Experiment 5: does the beginning tell the end?"
    seeds = sorted({one.seed for one in runs})
    yield (
        f"{len(runs)} short runs of associative recall (seeds {seeds[0]} to {seeds[-1]}, used for nothing else), "
        f"{len({one.norm for one in runs})} norms, {len({one.depth for one in runs})} depths, "
        f"{len({one.learning_rate for one in runs})} learning rates. Scores are of the first step, or of the tenth "
        "where they say so, when a fifth of the peak's rate is reached. Within a norm, or an architecture (norm and "
        "depth), only pairs of runs of one are compared; .5 is chance. Brackets hold 95 % bootstrap intervals over "
        "runs; * looks at no weights."
    )
    by_label = {label: ranked(runs, label) for label in LABELS}
    yield headline(by_label[FAILED])
    yield _counts(runs)
    for label, found in by_label.items():
        if found:
            yield f"### A run {label}: {SAID[label]}"
            yield _table(found)


def headline(found: Sequence[Ranked]) -> str:
    """Say what near-unit mass tells of a run's end, beside the label alone and beside what knows the rate.

    Returns:
        Sentences; none where it was not measured.
    """
    by_name = {one.score: one for one in found}
    if MASS not in by_name:
        return "No run failed, or none did not: nothing can be ranked."
    mass = by_name[MASS]
    told = [
        f"Near-unit mass at the start ranks runs that fail with an area of {figure(mass.overall)} over all, and "
        f"{figure(mass.within_architecture)} within an architecture."
    ]
    if NO_NORM in by_name:
        told.append(f"That a model has no norms, alone, has {figure(by_name[NO_NORM].overall)}.")
    if KNOWS_THE_RATE in by_name:
        one = by_name[KNOWS_THE_RATE]
        told.append(
            f"S after ten steps, at the rate of the peak, has {figure(one.overall)} over all and "
            f"{figure(one.within_architecture)} within."
        )
    return " ".join(told)


def _counts(runs: Sequence[Begun]) -> str:
    rates = sorted({one.learning_rate for one in runs})
    rows = []
    for norm in NORMS:
        for depth in sorted({one.depth for one in runs}):
            row = [norm, str(depth)]
            for rate in rates:
                of = [
                    one
                    for one in runs
                    if (one.norm, one.depth) == (norm, depth) and one.learning_rate == rate
                ]
                row.append(f"{sum(one.failed for one in of)} ({sum(one.blew_up for one in of)}) of {len(of)}")
            rows.append(row)
    head = ["norm", "blocks", *(f"rate {rate:g}" for rate in rates)]
    return "Runs that failed (blew up) at each rate:\n\n" + table(head, rows)


def _table(found: Sequence[Ranked]) -> str:
    head = ["score", "runs", "fail", "over all", "within a norm", "within an architecture"]
    rows = [
        [
            one.score,
            str(one.runs),
            str(one.fail),
            figure(one.overall),
            figure(one.within_norm),
            figure(one.within_architecture),
        ]
        for one in found
    ]
    return table(head, rows)
