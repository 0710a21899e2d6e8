"""Experiment 3 on the study's page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.study.families import FAMILIES
from benchmarks.study.intervention import ARMS, LAST_STEPS, STALLED, Effect, Outcome, effects
from benchmarks.study.tables import decimal, figure, table
from hnf_offline.rerun.arms import AS_WAS


def section(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Spell the experiment: what each policy did, family by family and in all.

    Yields:
        Paragraphs and tables.
    """
    runs, seeds = {one.run for one in outcomes}, sorted({one.seed for one in outcomes})
    as_was = [one.reproduction for one in outcomes if one.arm == AS_WAS]
    exact, close = as_was.count("exact"), as_was.count("close")
    others = len(as_was) - exact - close
    # Over a thousand steps a spiky run is chaotic: what is compared are retrainings with each other.
    parted = f", {others} part from it once rounding differences have grown" if others else ""
    yield "## Experiment 3: acting on it"
    yield (
        f"{len(runs)} runs of their own seeds ({seeds[0]} to {seeds[-1]}, none chosen by how its run went) were "
        "trained again from their first checkpoint, on the same batches, as they were and under policies fixed "
        f"beforehand; as they were, {exact} of them {'is' if exact == 1 else 'are'} exact against the run, {close} "
        f"close{parted}. The final loss is the geometric mean of the last {LAST_STEPS}; a step is stalled whose loss "
        f"is above {STALLED} times the best so far. Brackets hold 95 % bootstrap intervals over runs, each compared "
        "with itself."
    )
    yield headline(effects(outcomes))
    spellings = "; ".join(f"{name}: `{spelling}`" for name, spelling in ARMS.items())
    yield f"Policies, as `hnf whatif --policy` spells them: {spellings}."
    for letter in sorted({one.family for one in outcomes}):
        yield f"### {letter}. {FAMILIES[letter].title}, under policies"
        yield _effects(effects([one for one in outcomes if one.family == letter]))
    yield "### All families, under policies"
    yield _effects(effects(outcomes))


def headline(found: Sequence[Effect]) -> str:
    """Say which policies surely have fewer onsets, and what that costs; and which have not.

    Returns:
        Sentences.
    """
    arms = [one for one in found if one.arm != AS_WAS]
    fewer = [one for one in arms if one.fewer.high is not None and one.fewer.high < 1]
    others = [one for one in arms if one not in fewer]
    sentences = []
    if fewer:
        told = "; ".join(
            f"{one.arm} ({figure(one.fewer)} times the onsets, {one.failed} of {one.runs} runs failed instead of "
            f"{one.failed_as_was}, final loss {figure(one.loss)} times)"
            for one in fewer
        )
        sentences.append(f"Surely fewer onsets than as they were: {told}.")
    if others:
        told = "; ".join(f"{one.arm} ({figure(one.fewer)} times)" for one in others)
        sentences.append(f"Not surely fewer: {told}.")
    return " ".join(sentences)


def _effects(found: Sequence[Effect]) -> str:
    head = [
        "policy",
        "runs",
        "onsets",
        "times as was",
        "failed",
        "failed as was",
        "final loss, times as was",
        "of runs",
        "stalled",
        "reductions a run",
    ]
    rows = [
        [
            one.arm,
            str(one.runs),
            str(one.onsets),
            figure(one.fewer),
            str(one.failed),
            str(one.failed_as_was),
            figure(one.loss),
            str(one.compared),
            decimal(one.stalled),
            f"{one.reductions:.1f}",
        ]
        for one in found
    ]
    return table(head, rows)
