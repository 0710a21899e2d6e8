"""Profile a run: checkpoint after checkpoint into the long table, from the cache where nothing changed."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from hnf_offline.errors import InputError, UserError
from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.cost import forward_passes, forward_seconds
from hnf_offline.profile.measure import measure_in_memory
from hnf_offline.profile.session import (
    Session,
    check_settings,
    full_precision,
    open_session,
    optimizer_of,
)
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import (
    join_shards,
    read_shard,
    settings_key,
    shard_key,
    shard_path,
    write_parquet,
    write_shard,
)
from hnf_offline.quantities.registry import computable
from hnf_offline.run.batches import load_rows
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.optimizer import RawOptimizer
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.run.remote import check_room
from hnf_offline.table import Row

#: Relative difference up to which a replayed loss counts as the logged one.
LOSS_AGREES = 1e-3


@dataclass(frozen=True, slots=True)
class _Loaded:
    weights: dict[str, Tensor]
    optimizer: RawOptimizer | None
    damage: UserError | None = None


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
    """

    table: pl.DataFrame
    skipped: tuple[tuple[Path, str, str], ...]
    computed: int
    cached: int
    parameters: int | None
    device: str


def selected(run: Run, settings: ProfileSettings) -> tuple[Checkpoint, ...]:
    """Choose the checkpoints that the settings ask for.

    Returns:
        Every n-th checkpoint within the step range.
    """
    first = settings.first_step if settings.first_step is not None else -1
    last = settings.last_step if settings.last_step is not None else float("inf")
    return tuple(point for point in run.checkpoints if first <= point.step <= last)[:: settings.every]


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
    key = settings_key(settings, () if session is None else session.identity)
    frames: list[pl.DataFrame] = []
    skipped: list[tuple[Path, str, str]] = []
    waiting: list[tuple[Checkpoint, str]] = []
    for checkpoint, own_key in zip(checkpoints, shard_keys(run, session, key, checkpoints), strict=True):
        cached = read_shard(shard_path(out / "profile", checkpoint), own_key)
        if cached is None:
            waiting.append((checkpoint, own_key))
        else:
            frames.append(cached)
    done = cached_count = len(frames)
    if cached_count and on_progress is not None:
        on_progress(Progress(checkpoints[0].step, done, len(checkpoints), cached_count, 0.0))
    if session is not None and on_progress is not None and waiting:
        words = _announcement(session, settings, [point for point, _ in waiting])
        if words:
            on_progress(Progress(waiting[0][0].step, done, len(checkpoints), cached_count, 0.0, words))
    ratio: float | None = None
    with full_precision():
        for (checkpoint, own_key), loaded in _read_ahead([point for point, _ in waiting], waiting):
            began = time.perf_counter()
            try:
                if isinstance(loaded, UserError):
                    raise loaded
                rows = _measure(run, session, settings, checkpoint, loaded, skipped)
            except UserError as error:
                skipped.append((checkpoint.path, error.reason, error.remedy or ""))
                rows = []
            else:
                frames.append(write_shard(shard_path(out / "profile", checkpoint), rows, own_key))
            done += 1
            if on_progress is not None:
                seconds, event = time.perf_counter() - began, _event(rows, ratio)
                on_progress(Progress(checkpoint.step, done, len(checkpoints), cached_count, seconds, event))
            ratio = _stability(rows) or ratio
    if checkpoints and not frames:
        path, reason, remedy = skipped[0]
        raise InputError(
            f"none of {len(checkpoints)} checkpoints could be profiled: {reason}", path=path, remedy=remedy
        )
    result = join_shards(frames)
    write_parquet(out / "profile.parquet", result)
    parameters = None if session is None else sum(layer.size for layer in session.layers)
    device = "cpu" if session is None else str(session.device)
    return Profile(result, tuple(skipped), len(frames) - cached_count, cached_count, parameters, device)


def shard_keys(
    run: Run, session: Session | None, settings: str, checkpoints: Sequence[Checkpoint]
) -> Iterator[str]:
    """Keys of the shards: settings and files, and which rows are held against which logged losses.

    Where run.toml corrects the steps of the batches, or the log has grown, the check is made anew.

    Yields:
        One key a checkpoint.
    """
    logged = _logged_losses(run)
    for checkpoint in checkpoints:
        key = shard_key(checkpoint, settings)
        if session is not None:
            checked = [
                (step, tuple(session.source.rows_of_step(step)), logged[step])
                for step in _steps_to_check(checkpoint.step)
                if step in logged
            ]
            key += hashlib.blake2b(repr(checked).encode(), digest_size=8).hexdigest()
        yield key


def _read_ahead(
    checkpoints: list[Checkpoint], pairs: list[tuple[Checkpoint, str]]
) -> Iterator[tuple[tuple[Checkpoint, str], _Loaded | UserError]]:
    """Read one checkpoint ahead of the one in use, and hold no more than those two."""
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(_load, checkpoints[0]) if checkpoints else None
        for position, pair in enumerate(pairs):
            assert ahead is not None
            loaded = ahead.result()
            following = position + 1
            ahead = reader.submit(_load, checkpoints[following]) if following < len(checkpoints) else None
            yield pair, loaded


def _load(checkpoint: Checkpoint) -> _Loaded | UserError:
    try:
        weights = load_weights(checkpoint)
    except UserError as error:
        return error
    try:
        return _Loaded(weights, load_optimizer(checkpoint))
    except UserError as error:
        # A state that was cut off while it was written does not spoil the weights.
        return _Loaded(weights, None, error)


def _measure(
    run: Run,
    session: Session | None,
    settings: ProfileSettings,
    checkpoint: Checkpoint,
    loaded: _Loaded,
    skipped: list[tuple[Path, str, str]],
) -> list[Row]:
    if loaded.damage is not None:
        where, reason = loaded.damage.path or checkpoint.path, loaded.damage.reason
        skipped.append((where, f"its optimizer state {reason}", "S is left out at this checkpoint"))
    if session is None:
        return weights_only_rows(checkpoint.step, loaded.weights)
    load_weights_into(session.module, loaded.weights)
    state, reason = optimizer_of(session, run, checkpoint, loaded.optimizer)
    if reason:
        skipped.append((checkpoint.path, reason, "S is left out at this checkpoint"))
    rows, together = measure_in_memory(session, settings, checkpoint.step, state, checkpoint.path)
    return rows + training_loss_rows(run, session, checkpoint.step, together)


def weights_only_rows(step: int, weights: dict[str, Tensor]) -> list[Row]:
    """Look at the weights alone, where there is no model or nothing to replay.

    Returns:
        The share of non-finite values, of all tensors and of each that has some.
    """
    entry = computable(frozenset({"weight"}), "forward")[0]
    floating = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    shares = {name: float(entry.function(tensor)) for name, tensor in floating.items()}
    total = sum(tensor.numel() for tensor in floating.values())
    whole = sum(shares[name] * tensor.numel() for name, tensor in floating.items()) / max(1, total)
    rows = [Row(step, "", "model", -1, entry.name, whole)]
    return rows + [
        Row(step, name, "other", depth, entry.name, share)
        for depth, (name, share) in enumerate(shares.items())
        if share > 0
    ]


def training_loss_rows(run: Run, session: Session, step: int, together: int | None = None) -> list[Row]:
    """Replay the training batch of the next step: it must give the loss that was logged.

    Where it does not, the batches before and after are tried, so that a step count that is off by one is found.

    Args:
        run: the run, for its log.
        session: the module with the checkpoint's weights in it, and the batches.
        step: the checkpoint's step.
        together: rows that go through the model at once, None for what the memory plan says.

    Returns:
        `replay.loss` rows with batch "step N"; empty where the batches' steps are unknown.
    """
    logged = _logged_losses(run)
    rows: list[Row] = []
    entry = computable(frozenset({"loss"}), "forward")[0]
    for batch_step in _steps_to_check(step):
        numbers = session.source.rows_of_step(batch_step)
        if not len(numbers) or batch_step not in logged:
            if batch_step == step + 1:
                break  # the last checkpoint: no logged step follows that could agree
            continue
        tokens, labels = load_rows(session.source, tuple(numbers))
        batch = ReplayBatch.of(tokens, labels, f"step {batch_step}")
        with torch.no_grad():
            losses = [
                micro.weight
                * float(entry.function(evaluate(session.module, micro.tokens, micro.labels).loss))
                for micro in batch.cut(together or session.memory.rows, session.device)
            ]
        if not losses:
            continue  # every position of the batch is ignored
        value = sum(losses)
        rows.append(Row(step, "", "model", -1, entry.name, value, batch=batch.name))
        if batch_step == step + 1 and _agree(value, logged[batch_step]):
            break
    return rows


def _agree(replayed: float, logged: float) -> bool:
    if math.isnan(replayed) or math.isnan(logged):
        return math.isnan(replayed) and math.isnan(logged)  # a dead run replays as dead
    return replayed == logged or abs(replayed - logged) <= LOSS_AGREES * max(1.0, abs(replayed))


def _steps_to_check(step: int) -> tuple[int, int, int]:
    return step + 1, step, step + 2


def _logged_losses(run: Run) -> dict[int, float]:
    if run.log is None:
        return {}
    known = run.log.rows.select("step", "loss").drop_nulls()
    return dict(zip(known["step"].to_list(), known["loss"].to_list(), strict=True))


def _announcement(session: Session, settings: ProfileSettings, checkpoints: list[Checkpoint]) -> str:
    """Say beforehand what will take more than a minute; "" for less."""
    with_state = sum(bool(point.optimizer_files) for point in checkpoints)
    passes = with_state * forward_passes(session, settings, with_state=True)
    passes += (len(checkpoints) - with_state) * forward_passes(session, settings, with_state=False)
    minutes = passes * forward_seconds(session, repeats=1) / 60
    if minutes < 1:
        return ""
    peak = session.memory.peak_bytes / 2**20
    return (
        f"{len(checkpoints)} checkpoints will take about {minutes:.0f} min and {peak:,.0f} MiB; "
        "--tier gradient, --layers or --every make it shorter"
    )


def _stability(rows: list[Row]) -> float | None:
    whole = (row.value for row in rows if row.quantity == "hessian.stability_ratio" and row.layer == "")
    return next(whole, None)


def _event(rows: list[Row], before: float | None) -> str:
    """Tell what happened at a checkpoint; a run that stays beyond the edge is told once."""
    for row in rows:
        if row.quantity == "weight.nonfinite" and row.layer == "" and row.value > 0:
            return f"step {row.step}: {row.value:.2%} of the weights are not finite"
    now = _stability(rows)
    if now is not None and now >= 1 and (before is None or before < 1):
        return f"step {rows[0].step}: S = {now:.2f}, beyond the edge of stability"
    return ""
