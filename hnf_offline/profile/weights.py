"""The tier `weights`: checkpoints looked at without replaying anything, each alone and against those before it.

It has shards of its own: what is measured of a checkpoint here depends on its predecessors' files as well. Needs no
model; where there is one, layers have its names, heads are known, and optimizer states can be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn

from hnf_offline.errors import UserError
from hnf_offline.linalg.hessian import Part
from hnf_offline.profile.comparisons import occasion
from hnf_offline.profile.gradients import moments_of
from hnf_offline.profile.reading import load
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import Session, open_session, optimizer_of
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import content_hash, read_shard, settings_key, shard_path, write_shard
from hnf_offline.profile.side_by_side import TIER
from hnf_offline.profile.snapshot import TOGETHER, Snapshot, snapshot_of_parameters
from hnf_offline.profile.weight_rows import occasion_rows
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.model.layers import Layer, kind_of
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.table import sort, table

_HOST = torch.device("cpu")
#: Checkpoints that are measured side by side at most: progress is told after them, and an interruption loses them.
MOST_CHECKPOINTS = 16


@dataclass(frozen=True, slots=True)
class Weights:
    """What the weights of a run show.

    Attributes:
        table: a long table.
        skipped: (file, reason, remedy) of checkpoints that were left out.
        parameters: of the model, None where none is known.
    """

    table: pl.DataFrame
    skipped: tuple[tuple[Path, str, str], ...]
    parameters: int | None


def measure_weights(
    run: Run,
    settings: ProfileSettings,
    out: Path,
    *,
    model_factory: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Weights:
    """Measure the weights of every selected checkpoint, and how they changed since the one before it.

    Args:
        run: the run directory's records.
        settings: which checkpoints, and where.
        out: the output directory; shards go into `out/profile`.
        model_factory: `package.module:function` instead of the run's own model.
        on_progress: called after every checkpoint, of a small model after every few.

    Returns:
        The rows; of a checkpoint that cannot be read none, and why. "The checkpoint before" is the one before it
        among those selected that can be read; the column `batch` says which.
    """
    checkpoints = selected(run, settings)
    session = open_session(run, settings, model_factory) if checkpoints else None
    own = ProfileSettings(tier=TIER, seed=settings.seed)
    key = settings_key(own, () if session is None else session.identity)
    hashes = [content_hash(point.files) for point in checkpoints]
    keys = ["-".join([key, hashes[0], *hashes[max(0, at - 2) : at + 1]]) for at in range(len(checkpoints))]
    folder = out / "profile"
    frames: list[pl.DataFrame] = []
    skipped: dict[Path, tuple[Path, str, str]] = {}
    held: dict[int, Snapshot | None] = {}

    def snapshot(at: int) -> Snapshot | None:
        if at not in held:
            try:
                held[at] = snapshot_of(run, session, checkpoints[at])
            except UserError as error:
                skipped[checkpoints[at].path] = (checkpoints[at].path, error.reason, error.remedy or "")
                held[at] = None
        return held[at]

    def before(at: int) -> tuple[list[Snapshot], Snapshot | None]:
        earlier = [one for back in (1, 2) if at >= back and (one := snapshot(at - back)) is not None]
        return earlier, snapshot(0) if at else None

    cached, at = 0, 0
    while at < len(checkpoints):
        began = time.perf_counter()
        some = range(at, min(len(checkpoints), at + checkpoints_together(held.values())))
        found = {one: read_shard(_weights_path(folder, checkpoints[one]), keys[one]) for one in some}
        cached += sum(frame is not None for frame in found.values())
        missing = {one: now for one, frame in found.items() if frame is None and (now := snapshot(one))}
        device = _HOST if session is None else session.device
        rows = occasion_rows([occasion(now, *before(one)) for one, now in missing.items()], device)
        for one, own_rows in zip(missing, rows, strict=True):
            found[one] = write_shard(_weights_path(folder, checkpoints[one]), own_rows, keys[one])
        frames += [frame for frame in found.values() if frame is not None]
        at = some.stop
        for gone in [one for one in held if 0 < one < at - 2]:
            del held[gone]
        if on_progress is not None:
            seconds = time.perf_counter() - began
            step = checkpoints[at - 1].step
            on_progress(Progress(step, at, len(checkpoints), cached, seconds, work=TIER))
    parameters = None if session is None else sum(layer.size for layer in session.layers)
    return Weights(sort(pl.concat([table(), *frames])), tuple(skipped.values()), parameters)


def checkpoints_together(known: Iterable[Snapshot | None]) -> int:
    """Say how many checkpoints are measured side by side: of a small model some, where single ones are overhead.

    Args:
        known: some of them, None where one could not be read.

    Returns:
        1 while none is known.
    """
    sizes = [one.weights.numel() for one in known if one is not None]
    return min(MOST_CHECKPOINTS, max(1, TOGETHER // max(1, *sizes))) if sizes else 1


def _weights_path(folder: Path, checkpoint: Checkpoint) -> Path:
    path = shard_path(folder, checkpoint)
    return path.with_name(f"weights-{path.name}")


def snapshot_of(run: Run, session: Session | None, checkpoint: Checkpoint) -> Snapshot:
    """Read what a checkpoint's weights show.

    Args:
        run: the run, for its optimizer.
        session: the model that the weights are of, None where there is none.
        checkpoint: which one.

    Returns:
        Its weights and moments, in the host's memory.

    Raises:
        UserError: if it cannot be read.
    """
    loaded = load(checkpoint, _HOST)
    if isinstance(loaded, UserError):
        raise loaded
    moments: dict[str, Tensor] = {}
    heads: dict[str, tuple[int, int]] = {}
    if session is None:
        floating = {name: value for name, value in loaded.weights.items() if value.is_floating_point()}
        layers = _named(floating)
        parameters: dict[str, Tensor] = dict(floating)
    else:
        load_weights_into(session.module, loaded.weights)
        layers = session.layers
        parameters = {name: value.detach().to(_HOST) for name, value in session.module.named_parameters()}
        state, _ = optimizer_of(session, run, checkpoint, loaded.optimizer)
        if state is not None and state.saved:
            moments = moments_of(state, parameters)
        heads = heads_of(session.module, layers)
    return snapshot_of_parameters(checkpoint.step, layers, parameters, moments, heads)


def _named(weights: Mapping[str, Tensor]) -> tuple[Layer, ...]:
    """Without a model every tensor is a layer under its own name."""
    none = nn.Module()
    return tuple(
        Layer(name, kind_of(name.removesuffix(".weight"), none), depth, (Part(name, tuple(value.shape)),))
        for depth, (name, value) in enumerate(weights.items())
    )


def heads_of(module: nn.Module, layers: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    """Find how many heads each query projection has.

    Returns:
        Path of the layer -> query heads and key-value heads; without those that no configuration or attribute
        (`num_heads`, `n_head`) at or above tells.
    """
    found: dict[str, tuple[int, int]] = {}
    for layer in layers:
        path = layer.path if layer.kind == "query" else ""
        while path and layer.path not in found:
            path = path.rpartition(".")[0]
            try:
                around = module.get_submodule(path)
            except AttributeError:
                continue  # the part of a fused projection is no module
            config = getattr(around, "config", None)
            queries = getattr(config, "num_attention_heads", None)
            keys = getattr(config, "num_key_value_heads", None) or queries
            for name in ("num_heads", "n_head"):
                if queries is None:
                    queries = keys = getattr(around, name, None)
            if isinstance(queries, int) and isinstance(keys, int) and queries % keys == 0:
                found[layer.path] = queries, keys
    return found
