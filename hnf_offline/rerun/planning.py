"""What a retraining would cost: some of its steps and measurements are timed, nothing is written."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hnf_offline.profile.cost import forward_passes, forward_seconds
from hnf_offline.profile.selection import selected
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.shards import read_shard
from hnf_offline.rerun.arms import measured_steps
from hnf_offline.rerun.policies.registry import entries_of
from hnf_offline.rerun.readings import likeliest
from hnf_offline.rerun.stability import measured_rows
from hnf_offline.rerun.start import Start, open_start
from hnf_offline.rerun.whatif import LOOKS
from hnf_offline.rerun.zoom import last_step, open_for_retraining, shards
from hnf_offline.run.model.positions import positions
from hnf_offline.run.records import Run

#: Steps, and measurements spread over them, that are timed: eigenvalues settle at another pace at every step.
TIMED_STEPS, TIMED_LOOKS = 64, 5
#: Operations that are always affordable: a model of some thousand weights is zoomed at every step.
SMALL_OPERATIONS = 2e13
#: Replays that a search for the largest stable rate takes, as a rule.
SEARCH_REPLAYS = 8


@dataclass(frozen=True, slots=True)
class RetrainingPlan:
    """What a zoom or a what-if would cost.

    Attributes:
        start: checkpoint it begins at.
        stop: last step.
        trainings: how often these steps would be trained.
        measured: how many times S would be measured, in all.
        step_seconds: one training step, timed.
        measure_seconds: one measurement, timed.
        opening_seconds: building the model, reading the checkpoint, and what the first step prepares, timed.
        seconds: all together; starting the program and drawing the page (a few seconds) are not in it.
        peak_bytes: memory at the peak, estimated.
        device: where.
        missing: what stands in the way of an exact replay, as far as it is known beforehand.
    """

    start: int
    stop: int
    trainings: int
    measured: int
    step_seconds: float
    measure_seconds: float
    opening_seconds: float
    seconds: float
    peak_bytes: int
    device: str
    missing: tuple[str, ...]


def plan_zoom(
    run: Run,
    *,
    start: int,
    stop: int,
    settings: ProfileSettings,
    out: Path,
    every: int = 1,
    model: str | None = None,
) -> RetrainingPlan:
    """Say what a zoom would cost: one training to prove that it is the run, one more that is measured.

    Args:
        run: the run.
        start: checkpoint to begin at.
        stop: last step.
        settings: what to measure.
        out: where results would go; what was measured there before is not measured again.
        every: measure every n-th step.
        model: `package.module:function` instead of the run's own model.

    Returns:
        The plan.
    """
    opened = time.perf_counter()
    begin = _begin(run, start, settings, model)
    opening = time.perf_counter() - opened
    stop = last_step(begin, stop)
    shard_of = shards(begin, likeliest(begin), settings, out)
    wanted = measured_steps(start, stop, every)
    looks = sum(read_shard(*shard_of(step)) is None for step in wanted)
    return _plan(begin, stop, 2 if wanted else 1, looks, settings, opening)


def plan_whatif(
    run: Run,
    *,
    start: int,
    steps: int,
    policies: Sequence[str],
    settings: ProfileSettings,
    every: int | None = None,
    model: str | None = None,
    twins: int = 0,
    find_largest_stable: bool = False,
) -> RetrainingPlan:
    """Say what a what-if would cost; policies that measure S themselves cost more than is counted here.

    Args:
        run: the run.
        start: checkpoint to begin at.
        steps: steps of each arm.
        policies: the arms beside the run as it was.
        settings: how S is measured.
        every: measure S every n-th step; 0 for never, None for about ten times.
        model: `package.module:function` instead of the run's own model.
        twins: how many twins.
        find_largest_stable: whether the largest stable rate is searched for.

    Returns:
        The plan.
    """
    for spelling in policies:
        entries_of(spelling)
    opened = time.perf_counter()
    begin = _begin(run, start, settings, model)
    opening = time.perf_counter() - opened
    stop = last_step(begin, start + steps)
    every = max(1, (stop - start) // LOOKS) if every is None else every
    arms = 1 + len(policies)
    trainings = 1 + arms + (twins + 1 if twins else 0) + (SEARCH_REPLAYS if find_largest_stable else 0)
    looks = arms * len(measured_steps(start, stop, every)) + bool(find_largest_stable)
    return _plan(begin, stop, trainings, looks, settings, opening)


@dataclass(frozen=True, slots=True)
class Fineness:
    """How finely steps are measured.

    Attributes:
        every: measure every n-th step.
        seconds: what that will take, estimated from one timed forward pass.
    """

    every: int
    seconds: float


def affordable(
    run: Run, profiled: ProfileSettings, zoomed: ProfileSettings, steps: int, model: str | None = None
) -> Fineness:
    """Choose how finely steps can be measured for no more than the profile itself costs, or a small sum.

    Costs are counted, not timed, so that the same run always gets the same report: a forward pass counts as two
    operations a parameter and token.

    Args:
        run: the run.
        profiled: settings of the profile.
        zoomed: settings of a zoomed step.
        steps: steps to measure in all.
        model: `package.module:function` instead of the run's own model.

    Returns:
        Measure every n-th step: 1 for all; and the seconds that will take.
    """
    session = open_for_retraining(run, zoomed, model)
    passes = forward_passes(session, zoomed, with_state=True)
    parameters = sum(layer.size for layer in session.layers)
    operations = 2.0 * parameters * positions(session.batch.tokens, session.module)
    whole = len(selected(run, profiled)) * forward_passes(session, profiled, with_state=True)
    allowed = max(whole, SMALL_OPERATIONS / operations)
    every = max(1, math.ceil(passes * steps / allowed))
    return Fineness(every, passes * steps / every * forward_seconds(session))


def _begin(run: Run, start: int, settings: ProfileSettings, model: str | None) -> Start:
    return open_start(run, open_for_retraining(run, settings, model), start)


def _spread(first: int, last: int) -> list[int]:
    """Choose steps to measure at, evenly from the first to the last.

    Returns:
        Ascending steps, the last one always among them.
    """
    count = min(TIMED_LOOKS, last - first + 1)
    return sorted({first + round((last - first) * place / (count - 1)) for place in range(count)})


def _plan(
    begin: Start, stop: int, trainings: int, looks: int, settings: ProfileSettings, opening: float
) -> RetrainingPlan:
    first = begin.checkpoint.step
    # What the very first step and look prepare, later ones find prepared.
    since = time.perf_counter()
    training = begin.training(likeliest(begin))
    measured_rows(begin.session, settings, training)
    training.advance()
    training.end()
    training = begin.training(likeliest(begin))
    opening += time.perf_counter() - since
    places = _spread(first, min(stop, first + TIMED_STEPS))
    looking: list[float] = []
    stepped = 0.0
    for place in places:
        since = time.perf_counter()
        while training.step < place:
            taken = training.advance()
            if taken.loss is not None and training.step == place:
                float(taken.loss)  # waits for the device
        stepped += time.perf_counter() - since
        since = time.perf_counter()
        measured_rows(begin.session, settings, training)
        looking.append(time.perf_counter() - since)
    training.end()
    begin.batches.close()
    step, look = stepped / (places[-1] - first), statistics.mean(looking)
    missing = []
    if begin.borrowed:
        missing.append(f"checkpoint {first} has no optimizer state: retraining will not be the run")
    if training.recipe.dropout and begin.random_state(first + 1) is None:
        missing.append("the model has dropout and its random states were not saved")
    if begin.run.log is None:
        missing.append("there is no log to compare with")
    return RetrainingPlan(
        first,
        stop,
        trainings,
        looks,
        step,
        look,
        opening,
        opening + (stop - first) * trainings * step + looks * look,
        begin.session.memory.peak_bytes,
        str(begin.session.device),
        tuple(missing),
    )
