"""Profile a run: checkpoint after checkpoint into the long table, from the cache where nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from hnf_offline.errors import InputError
from hnf_offline.profile.checkpoint import logged_losses, measure_each, steps_to_check
from hnf_offline.profile.cost import forward_passes, forward_seconds
from hnf_offline.profile.course import with_course
from hnf_offline.profile.devices import choose_devices
from hnf_offline.profile.finished import Finished, Lost, Part
from hnf_offline.profile.parts import heard_by
from hnf_offline.profile.processes import measure_on_devices
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import Session, check_settings, open_session
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import (
    join_shards,
    read_shard,
    settings_key,
    shard_key,
    shard_path,
    write_parquet,
)
from hnf_offline.profile.telling import Teller
from hnf_offline.run.assumed import assumed_state
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.run.remote import check_room


@dataclass(frozen=True, slots=True)
class Profile:
    """What profiling gave.

    Attributes:
        table: the long table.
        skipped: (file, reason, remedy) of checkpoints that could not be profiled, and of optimizer states that
            could not be assigned.
        computed: checkpoints computed now.
        cached: checkpoints taken from the cache.
        parameters: parameters of the model, None without a model.
        device: where it ran.
        forwards: forward passes of all replayed rows that a checkpoint was worth, the mean of those computed now.
        peak_bytes: memory at the peak of those, weights included; 0 where all came from the cache.
    """

    table: pl.DataFrame
    skipped: tuple[tuple[Path, str, str], ...]
    computed: int
    cached: int
    parameters: int | None
    device: str
    forwards: float = 0.0
    peak_bytes: int = 0


def profile_run(
    run: Run,
    settings: ProfileSettings,
    out: Path,
    *,
    model_factory: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Profile:
    """Measure every selected checkpoint and write `out/profile.parquet`.

    Each checkpoint becomes one shard in `out/profile/`, renamed into place when whole; a rerun measures only
    what is missing or whose settings or files changed. While one checkpoint is measured the next is read.
    A checkpoint that cannot be read or measured is skipped and counted.

    Args:
        run: the run directory's records.
        settings: what to measure.
        out: the output directory; nothing is written anywhere else.
        model_factory: `package.module:function` instead of the run's own model.
        on_progress: called after every checkpoint.

    Returns:
        The table and what was left out.

    Raises:
        InputError: if model or batches cannot be used at all, or none of the checkpoints can be read.
    """
    check_settings(settings)
    checkpoints = selected(run, settings)
    check_room(run.path, checkpoints)
    session = open_session(run, settings, model_factory) if checkpoints else None
    devices = [str(device) for device in choose_devices(settings.device)] if session is not None else ["cpu"]
    parameters = None if session is None else sum(layer.size for layer in session.layers)
    key = settings_key(settings, () if session is None else session.identity)
    folder = out / "profile"
    frames: list[pl.DataFrame] = []
    waiting: list[tuple[Checkpoint, str]] = []
    for checkpoint, own_key in zip(checkpoints, shard_keys(run, session, key, checkpoints), strict=True):
        cached = read_shard(shard_path(folder, checkpoint), own_key)
        if cached is None:
            waiting.append((checkpoint, own_key))
        else:
            frames.append(cached)
    tell = Teller(on_progress, len(checkpoints), len(frames))
    if frames:
        tell(checkpoints[0].step)
    if session is not None and on_progress is not None and waiting:
        words = _announcement(session, settings, [point for point, _ in waiting], len(devices))
        if words:
            tell(waiting[0][0].step, event=words)
    work: Generator[Finished | Lost | Part]
    if len(devices) > 1 and len(waiting) > 1:
        session = None  # each process builds its own; what this one took goes back first
        work = measure_on_devices(run, settings, folder, devices, waiting, model_factory)
    else:
        work = measure_each(run, session, settings, folder, waiting)
    ended: list[Finished | Lost] = []
    with closing(work), heard_by(tell.part):
        for one in work:
            if isinstance(one, Part):
                tell.part(one.step, one.done, one.total, one.share)
                continue
            ended.append(one)
            if isinstance(one, Lost):
                tell(one.checkpoints[0].step, event=one.event)
            else:
                tell.finished(one)
    measured = [one.frame for one in ended if isinstance(one, Finished) and one.frame is not None]
    skipped = _in_order(ended)
    if checkpoints and not frames and not measured:
        path, reason, remedy = skipped[0]
        raise InputError(
            f"none of {len(checkpoints)} checkpoints could be profiled: {reason}", path=path, remedy=remedy
        )
    result = with_course(join_shards([*frames, *measured]))
    write_parquet(out / "profile.parquet", result)
    done = [one for one in ended if isinstance(one, Finished) and one.frame is not None]
    return Profile(
        result,
        skipped,
        len(measured),
        len(frames),
        parameters,
        ", ".join(devices),
        sum(one.forwards for one in done) / max(1, len(done)),
        max((one.peak_bytes for one in done), default=0),
    )


def _in_order(ended: Sequence[Finished | Lost]) -> tuple[tuple[Path, str, str], ...]:
    """Put what was left out into the order of the steps, in which one process would have met it."""
    told = [
        (one.checkpoint.step if isinstance(one, Finished) else point.step, entry)
        for one in ended
        for point, entry in (
            [(one.checkpoint, entry) for entry in one.skipped]
            if isinstance(one, Finished)
            else zip(one.checkpoints, one.skipped, strict=True)
        )
    ]
    return tuple(entry for _, entry in sorted(told, key=lambda pair: pair[0]))


def shard_keys(
    run: Run, session: Session | None, settings: str, checkpoints: Sequence[Checkpoint]
) -> Iterator[str]:
    """Keys of the shards: settings and files, and which rows are held against which logged losses.

    Where run.toml corrects the steps of the batches, or the log has grown, the check is made anew.

    Yields:
        One key a checkpoint.
    """
    logged = logged_losses(run)
    for checkpoint in checkpoints:
        key = shard_key(checkpoint, settings)
        if session is not None:
            checked = [
                (step, tuple(session.source.rows_of_step(step)), logged[step])
                for step in steps_to_check(checkpoint.step)
                if step in logged
            ]
            # Without a state, what log and configuration say of the optimizer decides what is measured.
            assumed = None if checkpoint.optimizer_files else assumed_state(run, ("",), checkpoint.step)[0]
            key += hashlib.blake2b(repr((checked, assumed)).encode(), digest_size=8).hexdigest()
        yield key


def _announcement(
    session: Session, settings: ProfileSettings, checkpoints: list[Checkpoint], devices: int
) -> str:
    """Say beforehand what will take more than a minute; "" for less."""
    with_state = sum(bool(point.optimizer_files) for point in checkpoints)
    passes = with_state * forward_passes(session, settings, with_state=True)
    passes += (len(checkpoints) - with_state) * forward_passes(session, settings, with_state=False)
    minutes = passes * forward_seconds(session, repeats=1) / 60 / min(devices, len(checkpoints))
    if minutes < 1:
        return ""
    peak = session.memory.peak_bytes / 2**20
    return (
        f"{len(checkpoints)} checkpoints will take about {minutes:.0f} min and {peak:,.0f} MiB; "
        "--tier gradient, --layers or --every make it shorter"
    )
