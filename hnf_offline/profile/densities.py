"""The spectral density of the whole model at every checkpoint, on request: some hundred products for each.

It is measured apart from the rest and has shards of its own, so that asking for it later measures nothing else anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from hnf_offline.errors import InputError, UserError
from hnf_offline.linalg.density import Quadrature, SpectralDensity, spectral_density
from hnf_offline.linalg.operator import Scaled, SymmetricOperator
from hnf_offline.profile.exhaustion import halving
from hnf_offline.profile.layer_curvature import exact_graph
from hnf_offline.profile.memory import MemoryPlan, free_bytes
from hnf_offline.profile.reading import Loaded, read_ahead
from hnf_offline.profile.rounding import step_metric_of
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import Session, full_precision, memory_now, open_session, optimizer_of
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import read_shard, settings_key, shard_key, shard_path, write_parquet
from hnf_offline.profile.whole import block_of_all
from hnf_offline.quantities.registry import computable
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.table import Row, sort, table

#: Random start vectors, and products with each. Forty steps resolve what lies outside the bulk (Ghorbani et al. 2019
#: take 90 for pictures of the bulk itself).
PROBES, STEPS = 4, 40
#: Steps below which the far ends of a spectrum have not come into sight.
FEWEST_STEPS = 10
#: Operator -> the input of a quantity that it is.
OPERATORS: Mapping[str, str] = {"hessian": "density", "preconditioned": "scaled_density"}
NODES: Mapping[str, type[pl.DataType]] = {
    "step": pl.Int64,
    "layer": pl.String,
    "operator": pl.String,
    "probe": pl.Int32,
    "node": pl.Float64,
    "weight": pl.Float64,
    "residual": pl.Float64,
    "dimension": pl.Int64,
    "batch": pl.String,
}
_KEY = "hnf_offline.key"


@dataclass(frozen=True, slots=True)
class Densities:
    """Spectral densities of a run.

    Attributes:
        rows: shares of the spectra, a long table.
        nodes: pooled nodes and weights (`NODES`): the weights of one step and operator sum to 1, `node` is an
            eigenvalue of the Hessian, or of A^1/2 H A^1/2 in units of the stability limit.
        skipped: (file, reason, remedy) of checkpoints that were left out.
    """

    rows: pl.DataFrame
    nodes: pl.DataFrame
    skipped: tuple[tuple[Path, str, str], ...]


def measure_densities(
    run: Run,
    settings: ProfileSettings,
    out: Path,
    *,
    model_factory: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Densities:
    """Measure the spectral density at every selected checkpoint and write `out/density.parquet`.

    Of several devices the first one does all.

    Args:
        run: the run directory's records.
        settings: which checkpoints, rows, device and precision.
        out: the output directory.
        model_factory: `package.module:function` instead of the run's own model.
        on_progress: called after every checkpoint.

    Returns:
        The densities and what follows from them; empty where there is no model or nothing to replay.
    """
    checkpoints = selected(run, settings)
    session = open_session(run, settings, model_factory) if checkpoints else None
    if session is None:
        return Densities(table(), pl.DataFrame(schema=NODES), ())
    # Nothing else of the settings changes a density.
    own = ProfileSettings(dtype=settings.dtype, rows=settings.rows, seed=settings.seed, density=True)
    key = settings_key(own, (*session.identity, f"density {PROBES} {STEPS}"))
    paths = {point.step: density_path(out / "profile", point) for point in checkpoints}
    keys = {point.step: shard_key(point, key) for point in checkpoints}
    found = {step: read_shard(path, keys[step]) for step, path in paths.items()}
    waiting = [point for point in checkpoints if found[point.step] is None]
    cached, done = len(checkpoints) - len(waiting), len(checkpoints) - len(waiting)
    skipped: list[tuple[Path, str, str]] = []
    with full_precision():
        for checkpoint, loaded in read_ahead(waiting, session.device):
            began = time.perf_counter()
            try:
                nodes = _measure(run, session, settings, checkpoint, loaded)
            except UserError as error:
                skipped.append((checkpoint.path, f"no density: {error.reason}", error.remedy or ""))
            else:
                write_parquet(paths[checkpoint.step], nodes, {_KEY: keys[checkpoint.step]})
                found[checkpoint.step] = nodes
            done += 1
            if on_progress is not None:
                seconds = time.perf_counter() - began
                on_progress(
                    Progress(checkpoint.step, done, len(checkpoints), cached, seconds, work="density")
                )
    frames = [frame for frame in found.values() if frame is not None]
    nodes = pl.concat([pl.DataFrame(schema=NODES), *frames]).sort(
        ["step", "operator", "node"], maintain_order=True
    )
    write_parquet(out / "density.parquet", nodes)
    rows = [row for frame in frames for row in density_rows(frame)]
    return Densities(sort(table(rows)), nodes, tuple(skipped))


def density_path(folder: Path, checkpoint: Checkpoint) -> Path:
    """Name a checkpoint's density shard.

    Returns:
        `density-step-000140.parquet` in the folder.
    """
    path = shard_path(folder, checkpoint)
    return path.with_name(f"density-{path.name}")


def _measure(
    run: Run, session: Session, settings: ProfileSettings, checkpoint: Checkpoint, loaded: Loaded | UserError
) -> pl.DataFrame:
    if isinstance(loaded, UserError):
        raise loaded
    load_weights_into(session.module, loaded.weights)
    state, _ = optimizer_of(session, run, checkpoint, loaded.optimizer)

    def work(memory: MemoryPlan) -> list[pl.DataFrame]:
        batches = session.batch.cut(memory.rows, session.device)
        graph = exact_graph(session.module, batches, keep=memory.keep_graphs)
        whole = block_of_all(graph, session.layers)
        operators: dict[str, SymmetricOperator] = {"hessian": whole}
        metric = step_metric_of(state, graph.gradients)
        if metric is not None:
            operators["preconditioned"] = Scaled(whole, whole.flatten(metric).sqrt())
        steps = steps_in_memory(whole.dimension, graph.loss, checkpoint.path)
        return [
            nodes_of(
                spectral_density(
                    operator, probes=PROBES, steps=steps, seed=settings.seed, like=graph.loss.detach()
                ),
                checkpoint.step,
                name,
                session.batch.name,
            )
            for name, operator in operators.items()
        ]

    return pl.concat(halving(work, memory_now(session), checkpoint.path)[0])


def steps_in_memory(dimension: int, like: Tensor, path: Path) -> int:
    """Choose how many vectors of the model's size may be held.

    Args:
        dimension: entries of one.
        like: a tensor of their device and dtype.
        path: the checkpoint, for error messages.

    Returns:
        At most `STEPS`, less where half of the free memory holds fewer.

    Raises:
        InputError: if it holds too few for the ends of a spectrum.
    """
    room = free_bytes(like.device) // 2 // max(1, dimension * like.element_size())
    if room < FEWEST_STEPS:
        raise InputError(
            f"a density needs {FEWEST_STEPS} vectors of {dimension:,} parameters, and there is room for {room}",
            path=path,
            remedy="leave --density out",
        )
    return min(STEPS, room)


def nodes_of(density: SpectralDensity, step: int, operator: str, batch: str) -> pl.DataFrame:
    """Write a density down.

    Returns:
        A row a node (`NODES`); one NaN node of weight 1 where the operator was not finite.
    """
    nan = torch.full((1,), math.nan, dtype=torch.float64)
    probes = density.probes or (Quadrature(nan, torch.ones_like(nan), nan),)
    return pl.concat([
        pl.DataFrame(
            {
                "step": step,
                "layer": "",
                "operator": operator,
                "probe": number,
                "node": probe.nodes.tolist(),
                "weight": (probe.weights / len(probes)).tolist(),
                "residual": probe.residuals.tolist(),
                "dimension": density.dimension,
                "batch": batch,
            },
            schema=NODES,
        )
        for number, probe in enumerate(probes)
    ])


def densities_in(nodes: pl.DataFrame) -> Iterator[tuple[int, str, str, SpectralDensity]]:
    """Read densities back from their nodes.

    Yields:
        Step, operator, name of the rows, density.
    """
    for (step, operator, batch), own in nodes.group_by("step", "operator", "batch", maintain_order=True):
        parts = [part.sort("node") for part in own.partition_by("probe", maintain_order=True)]
        columns = [
            [torch.from_numpy(part[name].to_numpy().copy()) for name in ("node", "weight", "residual")]
            for part in parts
        ]
        probes = tuple(
            Quadrature(node, weight * len(parts), residual)
            for node, weight, residual in columns
            if bool(torch.isfinite(node).all())
        )
        yield int(step), str(operator), str(batch), SpectralDensity(own["dimension"][0], probes, 0)


def density_rows(nodes: pl.DataFrame) -> list[Row]:
    """Evaluate the quantities that a density gives.

    Returns:
        Rows of the whole model, low and high two standard errors away, within [0, 1].
    """
    rows: list[Row] = []
    for step, operator, batch, density in densities_in(nodes):
        for entry in computable(frozenset({OPERATORS[operator]}), "curvature"):
            share = entry.function(density)
            value, spread = float(share.value), 2 * float(share.error)
            ends = (max(0.0, value - spread), min(1.0, value + spread))
            low, high = ends if spread > 0 and math.isfinite(value) else (None, None)
            sure = density.resolved(1.0) if operator == "preconditioned" else bool(density.probes)
            rows.append(Row(step, "", "model", -1, entry.name, value, low, high, sure, batch))
    return rows
