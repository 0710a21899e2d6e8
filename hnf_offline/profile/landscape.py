"""The landscape around every checkpoint and between neighbours, and the directions that gradients take over the run.

It is measured apart from the rest and has shards of its own: a checkpoint is held against the one before it, and its
gradient, of which a projection is kept, against those of a window. Of several devices the first one does all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hnf_offline.errors import UserError
from hnf_offline.linalg.sketch import LENGTH, cosines, sketch
from hnf_offline.profile.effort import counted, spend
from hnf_offline.profile.exhaustion import halving
from hnf_offline.profile.gradients import mean_gradients
from hnf_offline.profile.memory import MemoryPlan
from hnf_offline.profile.reading import load
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import Session, full_precision, memory_now, open_session
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import (
    content_hash,
    read_shard,
    settings_key,
    shard_path,
    write_parquet,
    write_shard,
)
from hnf_offline.profile.surroundings import Surroundings, has_buffers, other_end
from hnf_offline.quantities.gradient_course import COMPARED, FEWEST_COMPARED
from hnf_offline.quantities.landscape import BOX, CORNERS, PAIRS, RADIUS, RISE, STRETCHES, barrier_of
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.table import Row, sort, table

_KEY = "hnf_offline.key"
#: What changes the values beside settings and files.
_MEASURED = f"landscape {RADIUS} {BOX} {CORNERS} {RISE} {PAIRS} {STRETCHES} {LENGTH}"
_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Landscape:
    """What the landscape of a run shows.

    Attributes:
        rows: a long table.
        skipped: (file, reason, remedy) of checkpoints that were left out.
        forwards: forward passes of all replayed rows that a checkpoint was worth, the mean of those measured now.
    """

    rows: pl.DataFrame
    skipped: tuple[tuple[Path, str, str], ...]
    forwards: float = 0.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The checkpoint before the one that is measured."""

    step: int
    weights: Mapping[str, Tensor]


def measure_landscape(
    run: Run,
    settings: ProfileSettings,
    out: Path,
    *,
    model_factory: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Landscape:
    """Measure the landscape at every selected checkpoint.

    Args:
        run: the run directory's records.
        settings: which checkpoints, rows, device and precision.
        out: the output directory; shards go into `out/profile`.
        model_factory: `package.module:function` instead of the run's own model.
        on_progress: called after every checkpoint.

    Returns:
        The rows; empty where there is no model or nothing to replay. "The checkpoint before" is the one before it
        among those selected; where that cannot be read or is not finite there is no barrier.
    """
    checkpoints = selected(run, settings)
    session = open_session(run, settings, model_factory) if checkpoints else None
    if session is None:
        return Landscape(table(), ())
    # Nothing else of the settings changes a landscape.
    own = ProfileSettings(dtype=settings.dtype, rows=settings.rows, seed=settings.seed)
    key = settings_key(own, (*session.identity, _MEASURED))
    hashes = [content_hash(point.files) for point in checkpoints]
    keys = ["-".join([key, *hashes[max(0, at - 1) : at + 1]]) for at in range(len(checkpoints))]
    skipped: dict[Path, tuple[Path, str, str]] = {}
    held: dict[int, Mapping[str, Tensor] | None] = {}

    def weights_of(at: int) -> Mapping[str, Tensor] | None:
        if at not in held:
            loaded = load(checkpoints[at], _HOST)
            if isinstance(loaded, UserError):
                path = checkpoints[at].path
                skipped[path] = (path, f"no landscape: {loaded.reason}", loaded.remedy or "")
            held[at] = None if isinstance(loaded, UserError) else loaded.weights
        return held[at]

    frames: list[pl.DataFrame] = []
    sketches: dict[int, Tensor] = {}
    spent: list[float] = []
    cached = 0
    for at, checkpoint in enumerate(checkpoints):
        began = time.perf_counter()
        paths = _paths(out / "profile", checkpoint)
        frame, kept = (read_shard(path, keys[at]) for path in paths)
        if frame is not None and kept is not None:
            cached += 1
        elif (weights := weights_of(at)) is not None:
            earlier = weights_of(at - 1) if at else None
            neighbour = None if earlier is None else Neighbour(checkpoints[at - 1].step, earlier)
            try:
                with full_precision(), counted() as effort:
                    rows, found = _measure(session, settings.seed, checkpoint, weights, neighbour)
            except UserError as error:
                skipped[checkpoint.path] = (
                    checkpoint.path,
                    f"no landscape: {error.reason}",
                    error.remedy or "",
                )
            else:
                spent.append(effort.forwards(len(session.batch.tokens)))
                # The rows last: they alone are no shard without the gradient.
                kept = _frame_of(found)
                write_parquet(paths[1], kept, {_KEY: keys[at]})
                frame = write_shard(paths[0], rows, keys[at])
        if frame is not None and kept is not None:
            frames.append(frame)
            vector = _sketch_in(kept)
            if vector is not None:
                sketches[checkpoint.step] = vector
        for gone in [one for one in held if one < at]:
            del held[gone]
        if on_progress is not None:
            seconds = time.perf_counter() - began
            on_progress(
                Progress(checkpoint.step, at + 1, len(checkpoints), cached, seconds, work="landscape")
            )
    directions = direction_course(sketches, len(checkpoints), session.batch.name)
    joined = sort(pl.concat([table(), *frames, table(directions)]))
    return Landscape(joined, tuple(skipped.values()), sum(spent) / max(1, len(spent)))


def _paths(folder: Path, checkpoint: Checkpoint) -> tuple[Path, Path]:
    path = shard_path(folder, checkpoint)
    return path.with_name(f"landscape-{path.name}"), path.with_name(f"gradient-{path.name}")


def _measure(
    session: Session,
    seed: int,
    checkpoint: Checkpoint,
    weights: Mapping[str, Tensor],
    before: Neighbour | None,
) -> tuple[list[Row], Tensor | None]:
    """Measure one checkpoint.

    Returns:
        Its rows, and a projection of its gradient; neither where the loss is not finite, and no projection where the
        gradient is not finite or zero.
    """
    load_weights_into(session.module, weights)

    def work(memory: MemoryPlan) -> tuple[list[Row], Tensor | None]:
        return _measure_rows(session, memory, seed, checkpoint.step, before)

    def restore() -> None:
        load_weights_into(session.module, weights)

    return halving(work, memory_now(session), checkpoint.path, restore)[0]


def _measure_rows(
    session: Session,
    memory: MemoryPlan,
    seed: int,
    step: int,
    before: Neighbour | None,
) -> tuple[list[Row], Tensor | None]:
    batches = session.batch.cut(memory.rows, session.device)
    around = Surroundings.of(session.module, batches)
    if not math.isfinite(around.centre):
        return [], None
    rows: list[Row] = []

    def tell(
        offered: Mapping[str, object],
        low: float,
        high: float,
        *,
        certified: bool = True,
        batch: str = session.batch.name,
    ) -> None:
        for entry in _of_landscape(offered):
            value = float(entry.function(**{name: offered[name] for name in entry.inputs}))
            ends = (value + low, value + high)
            rows.append(Row(step, "", "model", -1, entry.name, value, *ends, certified, batch))

    parameters = dict(session.module.named_parameters())
    gradients = mean_gradients(session.module, parameters, batches)
    spend("gradient", len(session.batch.tokens))
    kept = _projected(gradients)
    ascended = around.uphill(gradients)
    highest = around.highest_corner(gradients)
    del gradients
    blur = around.rounding
    if ascended is not None:
        tell({"centre_loss": around.centre, "ascended_loss": ascended}, -blur, blur)
    if highest is not None:
        share = 100.0 * blur / (1.0 + around.centre)
        offered = {"centre_loss": around.centre, "highest_loss": highest}
        tell(offered, -share, math.inf, certified=False)  # no more than a lower bound
    noise = around.largest_noise(seed)
    tell(
        {"largest_noise": noise},
        noise.low - noise.value,
        noise.high - noise.value,
        certified=noise.certified,
    )
    if before is None:
        return rows, kept
    try:
        start = other_end(session.module, before.weights)
    except UserError:
        return rows, kept  # told where that checkpoint itself is measured
    if not all(bool(tensor.isfinite().all()) for tensor in start.values()):
        return rows, kept
    losses = around.path(start)
    if math.isfinite(losses[0]):
        tell(
            {"path_losses": losses},
            -min(blur, barrier_of(losses)[0]),
            blur,
            certified=not has_buffers(session.module, start),
            batch=f"from step {before.step}: {session.batch.name}",
        )
    return rows, kept


def _of_landscape(offered: Mapping[str, object]) -> tuple[Quantity, ...]:
    return computable(frozenset(offered), "full")


def _projected(gradients: Mapping[str, Tensor]) -> Tensor | None:
    size = sum(one.numel() for one in gradients.values())
    found = sketch(gradients.values(), size, seed=0)
    return found if bool(found.isfinite().all()) and bool(found.any()) else None


def _frame_of(found: Tensor | None) -> pl.DataFrame:
    """A sketch as a table: number of the block, value; empty where there is none."""
    if found is None:
        return pl.DataFrame(schema={"block": pl.Int32, "value": pl.Float64})
    blocks = np.repeat(np.arange(len(found), dtype=np.int32), found.shape[1])
    return pl.DataFrame({"block": blocks, "value": found.flatten().numpy()})


def _sketch_in(frame: pl.DataFrame) -> Tensor | None:
    if frame.is_empty():
        return None
    blocks = int(frame["block"].max()) + 1  # type: ignore[arg-type]
    return torch.from_numpy(frame["value"].to_numpy().copy()).view(blocks, -1)


def direction_course(sketches: Mapping[int, Tensor], checkpoints: int, batch: str) -> list[Row]:
    """Find how many directions the gradients of the last checkpoints have, at every checkpoint.

    Windows are full ones, so that a course does not rise only because its first windows are short.

    Args:
        sketches: of gradients that are finite and not zero, by step.
        checkpoints: how many were selected; all of a run shorter than a window make one.
        batch: name of the replayed rows.

    Returns:
        Rows of the whole model, their ends two standard errors of the projection away (jackknife over its blocks).
    """
    steps = sorted(sketches)
    size = min(COMPARED, checkpoints)
    rows: list[Row] = []
    if size < FEWEST_COMPARED:
        return rows
    for last in range(size - 1, len(steps)):
        window = steps[last + 1 - size : last + 1]
        each = cosines(torch.stack([sketches[step] for step in window])).numpy()
        name = f"{size} checkpoints, steps {window[0]} to {window[-1]}: {batch}"
        for entry in computable(frozenset({"gradient_gram"}), "full"):
            value, error = jackknife(entry.function, each)
            most = 1.0 if entry.unit == "share" else float(size)
            low, high = (None, None) if error == 0 else (value - 2 * error, min(most, value + 2 * error))
            rows.append(Row(window[-1], "", "model", -1, entry.name, value, low, high, batch=name))
    return rows


def jackknife(
    formula: Callable[[np.ndarray], float], blocks: np.ndarray | Sequence[np.ndarray]
) -> tuple[float, float]:
    """Evaluate a formula of a mean over independent blocks, and its standard error by leaving out one at a time.

    Args:
        formula: of one matrix.
        blocks: [blocks, n, n].

    Returns:
        Value and standard error; 0 for a single block, which is exact.
    """
    each = np.asarray(blocks)
    value = formula(each.mean(axis=0))
    count = len(each)
    if count == 1:
        return value, 0.0
    others = [formula(np.delete(each, place, axis=0).mean(axis=0)) for place in range(count)]
    return value, math.sqrt((count - 1) * float(np.var(others)))
