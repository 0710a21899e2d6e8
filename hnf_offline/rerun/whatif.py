"""What if: the same steps from the same checkpoint under policies, beside the run as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from hnf_offline.errors import UsageError, spelled
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.rerun.arms import AS_WAS, Telling, final_loss, measured_steps, peak, train_arm, unsettled
from hnf_offline.rerun.largest_stable import find_largest_stable as search_largest_stable
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.start import open_start
from hnf_offline.rerun.twins import butterfly_twins, statistical_twins
from hnf_offline.rerun.zoom import last_step, open_for_retraining, prove
from hnf_offline.retraining import NOT_REPRODUCIBLE, Arm, LargestStable, Retraining, Twins
from hnf_offline.run.records import Run

OnProgress = Callable[[Progress], None]
#: S is measured so many times in each arm where nothing is said.
LOOKS = 10


class StoppedError(KeyboardInterrupt):
    """The user stopped a what-if after at least one policy was tried.

    Attributes:
        retraining: the arms that were done.
    """

    def __init__(self, retraining: Retraining) -> None:
        self.retraining = retraining
        super().__init__()


def whatif(
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
    on_progress: OnProgress | None = None,
) -> Retraining:
    """Retrain under policies, each beside the run as it was: same start, same batches.

    Args:
        run: the run.
        start: step of the checkpoint to begin at.
        steps: how many steps each arm has (fewer where the batches end).
        policies: spellings such as "lr-cap=0.01" or "lr-cap=0.01+skip=220".
        settings: how S is measured.
        every: measure S every n-th step, 0 for never, None for about ten times.
        model: `package.module:function` instead of the run's own model.
        twins: how many twins of the run as it was.
        find_largest_stable: also search for the largest constant learning rate that does not spike.
        on_progress: called after every measured step.

    Returns:
        All arms, the first as it was.

    Raises:
        UsageError: if a policy is not known, or the same one is given twice.
        StoppedError: if the user stopped it and at least one policy was tried until then.
        KeyboardInterrupt: if the user stopped it before.
    """
    for spelling in policies:
        make_policies(spelling)
    if len(set(policies)) < len(policies):
        raise UsageError("a policy is given twice", remedy="name each --policy once")
    session = open_for_retraining(run, settings, model)
    begin = open_start(run, session, start)
    stop = last_step(begin, start + steps)
    notes = (
        []
        if stop == start + steps
        else [f"the batches end at step {stop}, so {stop - start} steps were taken"]
    )
    found, reproduction = prove(begin, stop, on_progress, "whatif")
    usable = reproduction.word != NOT_REPRODUCIBLE
    if usable and found.parted is not None:
        notes.append(
            f"the first arm runs in one go, and parts from the run at step {found.parted}, where rounding has grown"
        )
    if not usable:
        notes.append("the first arm is not the run: compare the arms with each other, not with the log")
    every = max(1, (stop - start) // LOOKS) if every is None else every
    spellings = (AS_WAS, *policies)
    looks = len(measured_steps(start, stop, every)) or 1
    arms: list[Arm] = []
    band: Twins | None = None
    largest: LargestStable | None = None
    stopped = False
    try:
        for place, spelling in enumerate(spellings):
            telling = Telling(on_progress, place * looks, looks * len(spellings))
            arms.append(train_arm(begin, found.recipe, stop, spelling, settings, every, telling))
        if twins:
            make_twins = butterfly_twins if usable else statistical_twins
            band = make_twins(begin, found.recipe, stop, twins)
        if find_largest_stable:
            largest = search_largest_stable(begin, found.recipe, stop, settings, on_progress)
    except KeyboardInterrupt:
        if len(arms) < 2:
            raise
        stopped = True
        notes.append(f"stopped by the user: {len(arms) - 1} of {len(policies)} policies were tried")
    begin.batches.close()
    reference = arms[0]
    told = [_told(arm, reference, band) for arm in arms]
    notes += [f"{arm.policy}: {note}" for arm in arms for note in arm.notes]
    notes += [note for arm in arms for note in unsettled(arm)]
    done = Retraining(
        "whatif",
        {"name": run.name, "path": spelled(run.path), "optimizer": found.recipe.kind},
        start,
        stop,
        reproduction,
        tuple(told),
        twins=band,
        largest_stable=largest,
        notes=tuple(notes),
        made={"device": str(begin.session.device)},
    )
    if stopped:
        raise StoppedError(done)
    return done


def _told(arm: Arm, reference: Arm, band: Twins | None) -> Arm:
    last, was = final_loss(arm), final_loss(reference)
    clear: bool | None = None
    if band is not None and arm is not reference and last is not None and band.high:
        low, high = band.low[-1], band.high[-1]
        clear = not low <= last <= high if math.isfinite(last) else math.isfinite(high)
    return replace(arm, outcome=outcome(arm, reference), clear=clear) if was is not None else arm


def outcome(arm: Arm, reference: Arm) -> str:
    """Say in one sentence what an arm came to.

    Returns:
        "no spike, loss 2.16 at step 180 instead of 3.12".
    """
    if arm is reference:
        return f"{_spikes(arm)}, {_last(arm)}"
    beside = final_loss(reference)
    text = f"{_spikes(arm)}, {_last(arm)}"
    return text if beside is None else f"{text} instead of {_number(beside)}"


def _spikes(arm: Arm) -> str:
    highest = peak(arm)
    if highest is not None and not math.isfinite(highest[1]):
        return f"the loss is {highest[1]} from step {highest[0]} on"
    if not arm.spikes:
        return "no spike"
    worst = max(arm.spikes, key=lambda spike: spike.loss_peak)
    several = f"{len(arm.spikes)} spikes, the highest" if len(arm.spikes) > 1 else "a spike"
    return f"{several} at step {worst.onset} with peak {_number(worst.loss_peak)} at {worst.peak}"


def _last(arm: Arm) -> str:
    last = final_loss(arm)
    return "no loss" if last is None else f"loss {_number(last)} at step {arm.steps[-1]}"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)
