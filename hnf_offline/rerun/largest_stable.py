"""The largest constant learning rate that does not spike, found by bisection over replays: what lr/S claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from hnf_offline.errors import InputError
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.rerun.arms import Telling, peak, train_arm
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.stability import RATIO, measured_rows
from hnf_offline.rerun.start import Start
from hnf_offline.retraining import Arm, LargestStable

#: The interval between stable and unstable is narrowed to this ratio.
NARROW = 1.05
#: The search leaves the bracket lr/S by at most this factor, up or down.
FARTHEST = 64.0


def find_largest_stable(
    begin: Start,
    recipe: Recipe,
    stop: int,
    settings: ProfileSettings,
    on_progress: Callable[[Progress], None] | None = None,
) -> LargestStable:
    """Retrain at constant learning rates and halve the interval between those that spike and those that do not.

    A replay spikes when its losses, put behind those of the log, show a loss spike or are not finite. The search
    begins at lr/S, goes up or down by factors of 2 until it has one of each, and bisects the logarithm of the
    rate. It finds one edge; where stability is not monotonic in the rate there may be others.

    Args:
        begin: where to begin.
        recipe: the reading of the run.
        stop: last step of every replay.
        settings: how S is measured.
        on_progress: is told of each replay.

    Returns:
        The interval, and every replay that was tried.

    Raises:
        InputError: if neither lr/S nor the learning rate is a number to begin at.
    """
    first = begin.checkpoint.step
    training = begin.training(recipe)
    rows = measured_rows(begin.session, replace(settings, tier="stability"), training)
    rate = training.set_learning_rate(first + 1)
    training.end()
    limits = {
        row.quantity: row
        for row in rows
        if row.layer == "" and row.quantity in {RATIO, "optimizer.largest_stable_lr"}
    }
    claimed = limits.get("optimizer.largest_stable_lr")
    tried: dict[float, tuple[bool, float]] = {}

    def spikes(candidate: float) -> bool:
        arm = train_arm(begin, recipe, stop, f"lr-constant={candidate:.9g}", settings, 0, Telling())
        tried[candidate] = (spiked(arm), (peak(arm) or (0, math.nan))[1])
        if on_progress is not None:
            word = "spikes" if tried[candidate][0] else "no spike"
            event = f"constant learning rate {candidate:.3g}: {word}"
            on_progress(Progress(stop, len(tried), len(tried), 0, arm.seconds, event, "whatif"))
        return tried[candidate][0]

    if claimed is not None and not 0 < claimed.value < math.inf:
        claimed = None  # no direction of the loss is curved upwards: every rate is stable to second order
    begin_at = rate if claimed is None else claimed.value
    if not 0 < begin_at < math.inf:
        raise InputError(
            f"has learning rate {begin_at:g} for step {first + 1}: no multiple of it can be searched",
            path=begin.checkpoint.path,
            remedy="begin at a checkpoint whose next update has a learning rate above 0",
        )
    stable, unstable = bracket(spikes, begin_at)
    found = LargestStable(
        first,
        stop - first,
        rate,
        stable,
        unstable,
        None if claimed is None else claimed.value,
        None if claimed is None else claimed.low,
        None if claimed is None else claimed.high,
        tuple((one, *result) for one, result in sorted(tried.items())),
    )
    return replace(found, text=_text(found))


def spiked(arm: Arm) -> bool:
    """Tell whether a retraining went wrong.

    Returns:
        True where its loss spikes or is not finite.
    """
    return bool(arm.spikes) or any(loss is not None and not math.isfinite(loss) for loss in arm.loss)


def bracket(spikes: Callable[[float], bool], begin: float) -> tuple[float | None, float | None]:
    """Find where a yes-or-no property of a positive number changes, on a logarithmic scale.

    Args:
        spikes: False below the edge, True above it.
        begin: where to look first.

    Returns:
        The largest value tried that was False and the smallest that was True, at most 5 % apart; None for the
        one that was not met within a factor of 64 of the beginning.
    """
    stable: float | None = None
    unstable: float | None = None
    value = begin
    while stable is None or unstable is None:
        if spikes(value):
            unstable, value = value, value / 2
        else:
            stable, value = value, value * 2
        if not begin / FARTHEST <= value <= begin * FARTHEST:
            return stable, unstable
    while unstable / stable > NARROW:
        middle = math.sqrt(stable * unstable)
        if spikes(middle):
            unstable = middle
        else:
            stable = middle
    return stable, unstable


def _text(found: LargestStable) -> str:
    within = f"within {found.steps} steps from checkpoint {found.checkpoint}"
    if found.stable is None:
        said = f"every constant rate tried spikes {within}, down to {found.unstable:.3g}"
    elif found.unstable is None:
        said = f"no constant rate up to {found.stable:.3g} spikes {within}"
    else:
        said = f"a constant rate of {found.stable:.3g} does not spike {within}, {found.unstable:.3g} does"
    if found.from_curvature is None:
        return f"{said}; S is not known there, so there is no lr/S to compare"
    claim = f"lr/S says {found.from_curvature:.3g}"
    if found.from_curvature_low is not None and found.from_curvature_high is not None:
        claim += f" ({found.from_curvature_low:.3g} to {found.from_curvature_high:.3g})"
    edge = found.stable if found.unstable is None else found.unstable
    ratio = None if edge is None else edge / found.from_curvature
    return f"{said}; {claim}" + ("" if ratio is None else f": the edge is at {ratio:.2g} times lr/S")
