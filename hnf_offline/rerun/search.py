"""Find the reading of a run under which retraining gives it again; off-by-one is found by trying, and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from hnf_offline.errors import InputError
from hnf_offline.rerun.readings import (
    likeliest,
    others_of_accumulation,
    others_of_divisor,
    others_of_precision,
    shifts,
    update_rules,
)
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.walk import walk
from hnf_offline.rerun.witness import EXACT_LOSS, Witness

#: A reading that is not exact is preferred to a simpler one only if its mean difference is so much smaller.
DECISIVE = 0.5
#: How many things of the update rule may differ from the likeliest reading at once.
ROUNDS = 2

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The best reading and how it fares.

    Attributes:
        recipe: the reading.
        likeliest: the reading the run itself suggests.
        witness: the replay under the best reading, up to the last step asked for.
        first_loss: relative difference of the first loss, which no update has touched yet; None where the log
            lacks it.
        tried: readings that were tried beside the likeliest.
        parted: where the replay is the run only from checkpoint to checkpoint, the step at which it parts in one go.
    """

    recipe: Recipe
    likeliest: Recipe
    witness: Witness
    first_loss: float | None
    tried: int
    parted: int | None = None


def find_reading(start: Start, stop: int, tell: Told = lambda _: None) -> Found:
    """Retrain under the likeliest reading, and where it does not give the run, under others.

    The loss of the first step depends on weights, batch and precision only: it settles those. The rest (which
    rate, which clipping, ...) is settled by the steps up to the first one that differs, one change at a time.

    Args:
        start: the checkpoint.
        stop: last step.
        tell: is told what is being tried.

    Returns:
        The best reading found.
    """
    first = likeliest(start)
    seen = in_one_go = replay(start, first, stop)
    if not seen.exact:
        seen = _anchored(start, first, stop, seen)
    opening = seen.differences.get(start.checkpoint.step + 1)
    best, best_seen, tried = first, seen, 0
    if not seen.exact and not first.fresh_state:
        tell("the retraining is not the run yet: trying other readings of log, batches and settings")
        bases = [first]
        others = [
            *_shifted(first),
            *others_of_precision(first),
            *others_of_accumulation(start, first),
            *others_of_divisor(start, first),
        ]
        if opening is None:
            # Not every step is logged: what settles shifts elsewhere is known only together with the updates.
            tried += len(others)
            until = _mismatch(seen, stop)
            nearest, score = _nearest(start, others, until)
            if nearest is not None and score < DECISIVE * _score(_try(start, first, until)):
                bases = [nearest, first]
        elif not opening <= EXACT_LOSS:
            tried += len(others)
            bases = [one for one in others if _opening(start, one) <= EXACT_LOSS]
        for base in bases:
            reading, seen = base, seen if base == first else _whole(start, base, stop) or seen
            for _ in range(ROUNDS + 1):
                if seen.exact or seen.score() < DECISIVE * best_seen.score():
                    best, best_seen = reading, seen
                if seen.exact:
                    break
                until = min(stop, _mismatch(seen, stop) + 2)
                others = list(update_rules(start, reading))
                tried += len(others)
                nearest, score = _nearest(start, others, until)
                if nearest is None or score >= DECISIVE * _score(_try(start, reading, until)):
                    break
                reading, seen = nearest, _whole(start, nearest, stop) or seen
            if best_seen.exact:
                break
    parted = None
    if best_seen.anchored:
        in_one_go = in_one_go if best == first else _try(start, best, stop) or in_one_go
        parted = _mismatch(in_one_go, stop)
    opening = best_seen.differences.get(start.checkpoint.step + 1)
    return Found(best, first, best_seen, opening, tried, parted)


def replay(start: Start, recipe: Recipe, stop: int, *, anchored: bool = False) -> Witness:
    """Retrain without measuring anything.

    Args:
        start: where to begin.
        recipe: the reading of the run.
        stop: last step.
        anchored: take up every checkpoint on the way anew.

    Returns:
        What the replay gave, compared with the run.
    """
    witness = Witness(start, recipe, stop, anchored=anchored)
    for training, taken in walk(start, recipe, stop, anchored=anchored):
        witness.see(taken, training)
    witness.settle()
    return witness


def _whole(start: Start, recipe: Recipe, stop: int) -> Witness | None:
    seen = _try(start, recipe, stop)
    return seen if seen is None or seen.exact else _anchored(start, recipe, stop, seen)


def _anchored(start: Start, recipe: Recipe, stop: int, in_one_go: Witness) -> Witness:
    """Give the replay from checkpoint to checkpoint where that is decisively nearer to the run."""
    if not start.on_the_way(stop) or recipe.fresh_state:
        return in_one_go
    stepwise = replay(start, recipe, stop, anchored=True)
    nearer = stepwise.exact or stepwise.score() < DECISIVE * in_one_go.score()
    return stepwise if nearer else in_one_go


def _try(start: Start, recipe: Recipe, stop: int) -> Witness | None:
    # A shifted reading can ask for a batch beyond the ends of the file.
    try:
        return replay(start, recipe, stop)
    except InputError:
        return None


def _score(witness: Witness | None) -> float:
    return math.inf if witness is None else witness.score()


def _nearest(start: Start, others: Iterable[Recipe], until: int) -> tuple[Recipe | None, float]:
    best: Recipe | None = None
    lowest = math.inf
    for one in others:
        seen = _try(start, one, until)
        if seen is not None and seen.exact:
            return one, -1.0  # the others are further from what the run says of itself
        if _score(seen) < lowest:
            best, lowest = one, _score(seen)
    return best, lowest


def _opening(start: Start, recipe: Recipe) -> float:
    first = start.checkpoint.step + 1
    witness = _try(start, recipe, first)
    return math.inf if witness is None else witness.differences.get(first, math.inf)


def _shifted(recipe: Recipe) -> list[Recipe]:
    return [
        replace(recipe, batch_offset=batch, loss_offset=loss, rate_offset=loss) for batch, loss in shifts()
    ]


def _mismatch(witness: Witness, stop: int) -> int:
    known = (witness.first_mismatch, witness.first_weight_mismatch)
    return min((step for step in known if step is not None), default=stop)
