"""Zoom: retrain between two checkpoints, prove that it is the run, and measure every step."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import polars as pl

from hnf_offline.detect.headroom import headroom_alarms
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.detect.stability import stability_alarms
from hnf_offline.errors import InputError, UsageError, spelled
from hnf_offline.findings import Alarm
from hnf_offline.profile.session import Session, check_settings, open_session
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import (
    content_hash,
    join_shards,
    read_shard,
    settings_key,
    write_parquet,
    write_shard,
)
from hnf_offline.rerun.arms import as_was, measured_steps, unsettled
from hnf_offline.rerun.judgement import judge
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.search import Found, find_reading
from hnf_offline.rerun.stability import measured_rows, stability_in
from hnf_offline.rerun.start import Start, open_start
from hnf_offline.rerun.training import Training
from hnf_offline.rerun.twins import butterfly_twins, statistical_twins
from hnf_offline.rerun.walk import walk
from hnf_offline.retraining import NOT_REPRODUCIBLE, Reproduction, Retraining
from hnf_offline.run.records import Run
from hnf_offline.table import table

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Zoomed:
    """What a zoom gave.

    Attributes:
        retraining: the verdict, the losses, S step by step.
        table: the long table of the steps that were measured (source "zoom"); empty where the retraining is not
            the run.
    """

    retraining: Retraining
    table: pl.DataFrame


def open_for_retraining(run: Run, settings: ProfileSettings, model: str | None) -> Session:
    """Open a session on a run that retraining needs more of than profiling does.

    Returns:
        The session.

    Raises:
        InputError: if the run has no model or no batches.
    """
    check_settings(settings)
    session = open_session(run, settings, model)
    if session is None:
        lacking = "no model" if run.model is None and model is None else "no batches"
        raise InputError(
            f"has {lacking}: its steps cannot be taken again",
            path=run.path,
            remedy="name them in run.toml (--manifest FILE), or with --model and --replay",
        )
    return replace(session, source=run.batches) if run.batches is not None else session


def zoom(
    run: Run,
    *,
    start: int,
    stop: int,
    settings: ProfileSettings,
    out: Path,
    every: int = 1,
    model: str | None = None,
    twins: int = 0,
    on_progress: OnProgress | None = None,
) -> Zoomed:
    """Retrain a run from one checkpoint to a later step and measure every step in between.

    The retraining is held against the logged losses and the checkpoints on the way before anything is measured;
    where it is not the run, nothing is, and the reason is said. Each measured step becomes one shard below
    `out/profile/`, so that an interrupted zoom goes on where it stopped.

    Args:
        run: the run.
        start: step of the checkpoint to begin at.
        stop: last step.
        settings: what to measure at each step.
        out: folder for shards and `profile.parquet`; nothing is written anywhere else.
        every: measure every n-th step; 0 for none.
        model: `package.module:function` instead of the run's own model.
        twins: how many twins to train beside it.
        on_progress: called after every measured step.

    Returns:
        The verdict and the table.

    Raises:
        UsageError: if the steps are no stretch.
    """
    if stop <= start:
        raise UsageError(f"--to {stop} is not after --from {start}", remedy="zoom goes forward in time")
    session = open_for_retraining(run, settings, model)
    begin = open_start(run, session, start)
    asked, stop = stop, last_step(begin, stop)
    cut = (
        []
        if stop == asked
        else [f"the batches end at step {stop}, so steps {stop + 1} to {asked} were not taken"]
    )
    found, reproduction = prove(begin, stop, on_progress)
    measured = table()
    usable = reproduction.word != NOT_REPRODUCIBLE
    if usable and every:
        measured = _measure(begin, found, stop, settings, out, every, on_progress)
    arm = as_was(begin, found.witness.series, measured)
    alarms = alarms_within(run, measured)
    band = None
    if twins and usable:
        band = butterfly_twins(begin, found.recipe, stop, twins)
    elif twins or not usable:
        band = statistical_twins(begin, found.recipe, stop, twins or 3)
    begin.batches.close()
    retraining = Retraining(
        "zoom",
        {"name": run.name, "path": spelled(run.path), "optimizer": found.recipe.kind},
        start,
        stop,
        reproduction,
        (arm,),
        twins=band,
        notes=(*cut, *alarm_notes(alarms, measured), *unsettled(arm)),
        alarms=alarms,
        made={"device": str(begin.session.device)},
    )
    return Zoomed(retraining, measured)


def prove(
    begin: Start, stop: int, on_progress: OnProgress | None = None, work: str = "zoom"
) -> tuple[Found, Reproduction]:
    """Retrain without measuring, and say whether it is the run.

    Args:
        begin: where to begin.
        stop: last step.
        on_progress: called with what was found.
        work: what this is part of.

    Returns:
        The reading that fits best, and the verdict.
    """
    step = begin.checkpoint.step

    def tell(text: str) -> None:
        if on_progress is not None:
            on_progress(Progress(step, 0, stop - step, 0, 0.0, text, work))

    found = find_reading(begin, stop, tell)
    reproduction = judge(begin, found)
    tell(f"from {step} to {stop}: {reproduction.word.replace('_', ' ')}: {reproduction.because}")
    return found, reproduction


def last_step(begin: Start, stop: int) -> int:
    """Find how far the batches reach.

    Returns:
        `stop`, or the last step before it whose batch is there.

    Raises:
        InputError: if there is no batch for the very first step.
    """
    step = begin.checkpoint.step
    while step < stop and begin.batches.has(step + 1):
        step += 1
    if step == begin.checkpoint.step:
        raise InputError(
            f"does not say which rows were the batch of step {step + 1}",
            path=begin.batches.source.path,
            remedy="give rows a step or the step of each row: [batches] steps in run.toml",
        )
    return step


def _measure(
    begin: Start,
    found: Found,
    stop: int,
    settings: ProfileSettings,
    out: Path,
    every: int,
    on_progress: OnProgress | None,
) -> pl.DataFrame:
    first = begin.checkpoint.step
    wanted = set(measured_steps(first, stop, every))
    shard_of = shards(begin, found.recipe, settings, out, anchored=found.witness.anchored)
    frames: list[pl.DataFrame] = []
    cached = 0
    beyond = False

    def look(training: Training) -> None:
        nonlocal cached, beyond
        began = time.perf_counter()
        path, key = shard_of(training.step)
        frame, event = read_shard(path, key), ""
        if frame is None:
            rows = measured_rows(begin.session, settings, training)
            frame = write_shard(path, rows, key)
            known = stability_in(rows)
            # Only the crossing is news: beyond the edge, S may stay for many steps.
            if known is not None and known.ratio >= 1 and not beyond:
                event = f"step {training.step}: S = {known.ratio:.2f}, beyond the edge of stability"
            beyond = known is not None and known.ratio >= 1
        else:
            cached += 1
        frames.append(frame)
        if on_progress is not None:
            seconds = time.perf_counter() - began
            on_progress(Progress(training.step, len(frames), len(wanted), cached, seconds, event, "zoom"))

    look(begin.training(found.recipe))
    for training, _ in walk(begin, found.recipe, stop, anchored=found.witness.anchored):
        if training.step in wanted:
            look(training)
    result = join_shards(frames)
    write_parquet(out / "profile.parquet", result)
    return result


def shards(
    begin: Start, recipe: Recipe, settings: ProfileSettings, out: Path, *, anchored: bool = False
) -> Callable[[int], tuple[Path, str]]:
    """Say where the shard of a zoomed step lies, and which key it must carry to be used again.

    Returns:
        A function of the step.
    """
    folder = out / "profile" / f"zoom-{begin.checkpoint.step:06d}"
    base = f"{_key(begin, recipe, settings)}{'-anchored' if anchored else ''}"
    fed = _Fed(begin, recipe)
    return lambda step: (folder / f"step-{step:06d}.parquet", f"{base}-{fed.until(step)}")


def _key(begin: Start, recipe: Recipe, settings: ProfileSettings) -> str:
    text = (
        f"{settings_key(settings, begin.session.identity)}-{content_hash(begin.checkpoint.files)}-{recipe!r}"
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Fed:
    """Hashes what a replay was fed up to a step, and the rate that S is measured with there."""

    def __init__(self, begin: Start, recipe: Recipe) -> None:
        self._begin = begin
        self._recipe = recipe
        path = begin.batches.source.path
        self._hash = hashlib.blake2b(f"{path.name} {path.stat().st_size}".encode(), digest_size=8)
        self._digests: list[str] = []

    def until(self, stop: int) -> str:
        """Give the hash of everything up to a step; each step is hashed once."""
        first = self._begin.checkpoint.step
        while len(self._digests) <= stop - first:
            step = first + len(self._digests) + 1
            rate = self._begin.rates.of(step, source=self._recipe.rates, offset=self._recipe.rate_offset)
            rows = self._begin.batches.rows_of(step + self._recipe.batch_offset)
            self._hash.update(f"{rate!r} {list(rows[:1])}".encode())
            self._digests.append(self._hash.hexdigest())
        return self._digests[stop - first]


def alarms_within(run: Run, measured: pl.DataFrame) -> tuple[Alarm, ...]:
    """Find what a live monitor would have said within the zoomed steps.

    Returns:
        The alarms, the earliest known first.
    """
    if run.log is None or not measured.height:
        return ()
    log = run.log.rows
    spikes = find_spikes(log, resume_steps=run.resume_steps)
    alarms: tuple[Alarm, ...] = (
        *stability_alarms(measured, log, spikes),
        *headroom_alarms(measured, log),
    )
    last = int(measured["step"].max())  # type: ignore[arg-type]
    known = [alarm for alarm in alarms if alarm.known_at <= last]
    return tuple(sorted(known, key=lambda alarm: alarm.known_at))


def alarm_notes(alarms: Sequence[Alarm], measured: pl.DataFrame) -> list[str]:
    """Spell alarms with the resolution that the zoom gives them.

    Returns:
        One sentence an alarm.
    """
    steps = sorted(measured["step"].unique().to_list())
    gap = max((after - before for before, after in pairwise(steps)), default=1)
    return [f"known at step {alarm.known_at} (resolution {gap}): {alarm.text}" for alarm in alarms]
