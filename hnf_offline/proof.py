"""Proof by replay in a report: the stretches before spikes step by step, and its own advice tried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import UserError
from hnf_offline.profile.settings import Progress
from hnf_offline.retraining import NOT_REPRODUCIBLE

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.findings import Advice, Findings, Spike
    from hnf_offline.profile.settings import ProfileSettings
    from hnf_offline.relate.stretches import Stretch
    from hnf_offline.retraining import Arm, Retraining
    from hnf_offline.run.records import Run

#: Advice is tried until so many steps after the spike it is about.
STEPS_AFTER = 30
#: Tiers that measure S.
CURVATURE_TIERS = frozenset({"stability", "curvature", "full"})
#: Twins beside each trial, for the band that chance gives.
TWINS = 2

_TOO_LONG = "measuring {} steps would take too long; hnf zoom does it"

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Zooms:
    """What was zoomed in a run.

    Attributes:
        table: rows of all zoomed steps.
        told: one mapping a stretch for the findings: start, stop, verdict and figures.
    """

    table: pl.DataFrame
    told: tuple[Mapping[str, Any], ...]


def zoom_before_spikes(
    run: Run,
    profile: pl.DataFrame,
    findings: Findings,
    settings: ProfileSettings,
    out: Path,
    *,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> Zooms:
    """Retrain and measure step by step where a finer look sharpens what is told of a spike.

    Where measuring every step would take longer than is affordable, every n-th is measured; where not even a
    finer grid than the checkpoints' is affordable, nothing is, and that is said.

    Args:
        run: the run.
        profile: the long table of its checkpoints.
        findings: what was found in it.
        settings: the profile's settings; zooms measure the tier "stability" of them.
        out: folder for shards.
        model: `package.module:function` instead of the run's own model.
        on_progress: called after every measured step.

    Returns:
        Rows and verdicts; both empty where there is nothing to zoom.
    """
    import polars as pl

    from hnf_offline.relate.stretches import stretches_to_zoom
    from hnf_offline.rerun.planning import affordable
    from hnf_offline.rerun.zoom import zoom
    from hnf_offline.table import sort, table

    stretches = stretches_to_zoom(run, profile, findings) if settings.tier in CURVATURE_TIERS else ()
    if not stretches or not can_replay(run, model):
        return Zooms(table(), ())
    own = replace(settings, tier="stability", layers=None, first_step=None, last_step=None, every=1)
    steps = sum(stretch.stop - stretch.start for stretch in stretches)
    every = affordable(run, settings, own, steps, model).every
    tables, told = [table()], []
    for stretch in stretches:
        length = stretch.stop - stretch.start
        if every >= length:
            told.append(_not_zoomed(stretch, _TOO_LONG.format(length)))
            continue
        try:
            zoomed = zoom(
                run,
                start=stretch.start,
                stop=stretch.stop,
                settings=own,
                out=out / "zoom",
                every=every,
                model=model,
                on_progress=on_progress,
            )
        except UserError as error:
            told.append(_not_zoomed(stretch, error.reason))
            continue
        tables.append(zoomed.table)
        told.append(_told(stretch, zoomed.retraining, every))
    return Zooms(sort(pl.concat(tables)), tuple(told))


def planned_zooms(run: Run, settings: ProfileSettings, model: str | None = None) -> dict[str, Any]:
    """Say what zooming would cost a report, as far as the log alone tells where the spikes are.

    Alarms are known only when checkpoints are measured: the stretches before them come on top.

    Returns:
        `zoom_steps`, `zoom_every` and `zoom_seconds`, or `zoom_refused`: why the spikes would not be zoomed; empty
        where there is nothing to zoom.
    """
    from hnf_offline.relate.stretches import stretches_to_zoom
    from hnf_offline.relate.whole import find
    from hnf_offline.rerun.planning import affordable
    from hnf_offline.table import table

    if not can_replay(run, model) or settings.tier not in CURVATURE_TIERS:
        return {}
    stretches = stretches_to_zoom(run, table(), find(run, table()))
    lengths = [stretch.stop - stretch.start for stretch in stretches]
    if not sum(lengths):
        return {}
    refused = _refused(run, stretches[0])
    if refused:
        return {"zoom_refused": refused}
    own = replace(settings, tier="stability", layers=None, first_step=None, last_step=None, every=1)
    fineness = affordable(run, settings, own, sum(lengths), model)
    if all(fineness.every >= length for length in lengths):
        return {"zoom_refused": _TOO_LONG.format(sum(lengths))}
    return {"zoom_steps": sum(lengths), "zoom_every": fineness.every, "zoom_seconds": fineness.seconds}


def _refused(run: Run, stretch: Stretch) -> str:
    """Ask what zoom would say of the optimizer; of files elsewhere that is not known before they are fetched.

    Returns:
        Why its steps cannot be taken again, "" where they can as far as this is known.
    """
    from hnf_offline.rerun.start import rebuildable
    from hnf_offline.run.formats import load_optimizer
    from hnf_offline.run.remote import identity

    checkpoint = next(point for point in run.checkpoints if point.step == stretch.start)
    if any(identity(file) is not None for file in checkpoint.optimizer_files):
        return ""
    try:
        raw = load_optimizer(checkpoint)
        if raw is not None:
            rebuildable(run, checkpoint, raw)
    except UserError as error:
        return str(error)
    return ""


def can_replay(run: Run, model: str | None) -> bool:
    """Tell whether a run's steps can be taken again at all.

    Returns:
        True with a model, batches of known steps and an optimizer state.
    """
    batches = run.batches
    if batches is None or (run.model is None and model is None):
        return False
    stepwise = batches.steps is not None or batches.rows_per_step is not None or batches.every_step
    return stepwise and any(checkpoint.optimizer_files for checkpoint in run.checkpoints)


def prove_advice(
    run: Run,
    findings: Findings,
    settings: ProfileSettings,
    *,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[tuple[Advice, ...], tuple[Retraining, ...]]:
    """Retrain with every piece of advice that names a policy, through the spike it is about.

    Args:
        run: the run.
        findings: the findings whose advice is tried.
        settings: the profile's settings.
        model: `package.module:function` instead of the run's own model.
        on_progress: called as the trials go on.

    Returns:
        The advice with `tested` and `evidence` filled in, and the retrainings behind it, one a spike, in the
        order in which `evidence` first names them.
    """
    from hnf_offline.rerun.whatif import whatif

    spikes = {spike.id: spike for spike in findings.spikes}
    tested: dict[int, str] = {}
    evidence: dict[int, str] = {}
    retrainings: list[Retraining] = []
    for spike_id, wanted in _by_spike(findings.advice).items():
        spike = spikes.get(spike_id)
        if spike is None:
            continue
        begin = _start_for(run, spike, [findings.advice[place] for place in wanted])
        if begin is None:
            reason = "no checkpoint with optimizer state lies before the spike"
            tested |= dict.fromkeys(wanted, f"not tested: {reason}")
            continue
        policies = tuple(dict.fromkeys(findings.advice[place].policy for place in wanted))
        steps = max(spike.peak, spike.end or spike.peak) + STEPS_AFTER - begin
        try:
            done = whatif(
                run,
                start=begin,
                steps=steps,
                policies=policies,
                settings=replace(settings, tier="stability", layers=None),
                every=0,
                model=model,
                twins=TWINS,
                on_progress=on_progress,
            )
        except UserError as error:
            tested |= dict.fromkeys(wanted, f"not tested: {error.reason}")
            continue
        retrainings.append(done)
        for place in wanted:
            arm = next(arm for arm in done.arms if arm.policy == findings.advice[place].policy)
            tested[place] = _verdict_on(arm, done, spike)
            evidence[place] = f"proof/spike-{spike_id}/index.html"
    advice = tuple(
        replace(one, tested=tested.get(place, one.tested), evidence=evidence.get(place, ""))
        for place, one in enumerate(findings.advice)
    )
    return advice, tuple(retrainings)


def untestable(advice: Sequence[Advice]) -> tuple[Advice, ...]:
    """Say of a run whose steps cannot be taken again why its advice was not tested.

    Returns:
        The advice; what names no policy as it was.
    """
    lacking = "not tested: it takes the model, the batch of each step and an optimizer state"
    return tuple(replace(one, tested=lacking) if one.policy else one for one in advice)


def _by_spike(advice: Sequence[Advice]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, one in enumerate(advice):
        if one.policy and one.spike is not None:
            places.setdefault(one.spike, []).append(place)
    return places


def _start_for(run: Run, spike: Spike, advice: Sequence[Advice]) -> int | None:
    """The last checkpoint with optimizer state from which all of the advice can still act before the spike."""
    latest = min([spike.onset - 1, *(one.step for one in advice)])
    states = [point.step for point in run.checkpoints if point.optimizer_files]
    before = [step for step in states if step <= latest] or [step for step in states if step < spike.onset]
    return max(before, default=None)


def _verdict_on(arm: Arm, done: Retraining, spike: Spike) -> str:
    if done.reproduction.word == NOT_REPRODUCIBLE:
        return f"not tested: the retraining is not the run, because {done.reproduction.because}"
    until = spike.end or done.stop
    left = [one for one in arm.spikes if one.onset <= max(spike.peak, until)]
    if not left and not arm.spikes:
        said = f"tested: {arm.outcome}"
    elif not left:
        said = f"tested: this spike is gone, but there is {arm.outcome}"
    elif left[0].onset > spike.peak:
        said = f"tested: the spike comes {left[0].onset - spike.onset} steps later: {arm.outcome}"
    elif left[0].loss_peak < 0.9 * spike.loss_peak:
        said = f"tested: helps in part: {arm.outcome}"
    else:
        said = f"tested: does not help: {arm.outcome}"
    if arm.clear is False:
        said += "; the final loss is within what slightly changed weights give"
    return said


def _told(stretch: Stretch, done: Retraining, every: int) -> dict[str, Any]:
    reproduction = done.reproduction
    return {
        "start": done.start,
        "stop": done.stop,
        "every": every,
        "spikes": list(stretch.spikes),
        "word": reproduction.word,
        "because": reproduction.because,
        "found": list(reproduction.found),
        "loss_difference_max": reproduction.loss_difference,
        "weight_difference_max": max((check.difference for check in reproduction.weights), default=None),
    }


def _not_zoomed(stretch: Stretch, reason: str) -> dict[str, Any]:
    return {
        "start": stretch.start,
        "stop": stretch.stop,
        "every": 0,
        "spikes": list(stretch.spikes),
        "word": "not_zoomed",
        "because": reason,
        "found": [],
        "loss_difference_max": None,
        "weight_difference_max": None,
    }
