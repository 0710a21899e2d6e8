"""The tier `weights`: checkpoints looked at without replaying anything, each alone and against those before it.

It has shards of its own: what is measured of a checkpoint here depends on its predecessors' files as well. Needs no
model; where there is one, layers have its names, heads are known, and optimizer states can be read.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from hnf_offline.errors import UserError
from hnf_offline.linalg.hessian import Part
from hnf_offline.profile.forward import fetched
from hnf_offline.profile.reading import load
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import Session, open_session, optimizer_of
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.profile.shards import content_hash, read_shard, settings_key, shard_path, write_shard
from hnf_offline.quantities.key_query_changes import increment_spectra
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.quantities.weight_spectrum import matrix_spectrum
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.model.layers import Layer, kind_of
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.table import Row, sort, table

TIER = "weights"
_HOST = torch.device("cpu")
#: An interval this wide, as a share of the value, leaves it uncertified.
_UNSURE = 0.01
#: A part of a path that is a number: that of a block (not that of `norm1`).
_BLOCK_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint in the host's memory.

    Attributes:
        step: of the checkpoint.
        layers: where its parameters belong.
        parameters: by name.
        moments: the optimizer's first moments by parameter name, those it has.
        heads: query layer's path -> query and key-value heads.
        finite: whether all parameters are.
    """

    step: int
    layers: tuple[Layer, ...]
    parameters: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    heads: Mapping[str, tuple[int, int]]
    finite: bool


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
        on_progress: called after every checkpoint.

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
                held[at] = _snapshot(run, session, checkpoints[at])
            except UserError as error:
                skipped[checkpoints[at].path] = (checkpoints[at].path, error.reason, error.remedy or "")
                held[at] = None
        return held[at]

    cached = 0
    for at, checkpoint in enumerate(checkpoints):
        began = time.perf_counter()
        path = _weights_path(folder, checkpoint)
        frame = read_shard(path, keys[at])
        if frame is None:
            now = snapshot(at)
            if now is not None:
                device = _HOST if session is None else session.device
                earlier = [one for back in (1, 2) if at >= back and (one := snapshot(at - back)) is not None]
                first = snapshot(0) if at else None
                frame = write_shard(path, _rows(now, earlier, first, device), keys[at])
        else:
            cached += 1
        if frame is not None:
            frames.append(frame)
        for gone in [one for one in held if one and one < at - 1]:
            del held[gone]
        if on_progress is not None:
            seconds = time.perf_counter() - began
            on_progress(Progress(checkpoint.step, at + 1, len(checkpoints), cached, seconds, work=TIER))
    parameters = None if session is None else sum(layer.size for layer in session.layers)
    return Weights(sort(pl.concat([table(), *frames])), tuple(skipped.values()), parameters)


def _weights_path(folder: Path, checkpoint: Checkpoint) -> Path:
    path = shard_path(folder, checkpoint)
    return path.with_name(f"weights-{path.name}")


def _snapshot(run: Run, session: Session | None, checkpoint: Checkpoint) -> Snapshot:
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
        parameters = {
            name: value.detach().to(_HOST, copy=True) for name, value in session.module.named_parameters()
        }
        state, _ = optimizer_of(session, run, checkpoint, loaded.optimizer)
        if state is not None and state.saved:
            for name, own in state.parameters.items():
                moment = own.exp_avg if own.exp_avg is not None else own.momentum_buffer
                if moment is not None:
                    moments[name] = moment.detach().to(_HOST, torch.float32).reshape(parameters[name].shape)
        heads = heads_of(session.module, layers)
    finite = all(bool(value.isfinite().all()) for value in parameters.values())
    return Snapshot(checkpoint.step, layers, parameters, moments, heads, finite)


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


def _rows(
    now: Snapshot, earlier: Sequence[Snapshot], first: Snapshot | None, device: torch.device
) -> list[Row]:
    parameters = {name: value.to(device) for name, value in now.parameters.items()}
    rows = nonfinite_rows(now.step, now.layers, parameters)
    if not now.finite:
        return rows
    rows += alone_rows(now.step, now.layers, parameters)
    earlier = [one for one in earlier if one.finite and _alike(one, now)]
    if earlier:
        rows += _change_rows(now, earlier, device)
        rows += _increment_rows(now, earlier[0], device)
    if first is not None and first.finite and _alike(first, now):
        seen = _Collected(now.step, f"since step {first.step}")
        for layer in now.layers:
            start = _flat(layer, first.parameters, device)
            seen.add(layer, {"weight": _flat(layer, parameters), "first": start}, needing="first")
        rows += seen.rows()
    return rows


def _alike(one: Snapshot, other: Snapshot) -> bool:
    shapes = [{name: value.shape for name, value in each.parameters.items()} for each in (one, other)]
    return shapes[0] == shapes[1]


def nonfinite_rows(step: int, layers: Sequence[Layer], parameters: Mapping[str, Tensor]) -> list[Row]:
    """Count non-finite parameters, of the whole model and of every layer that has some.

    Returns:
        One row for the whole model, and one for each layer concerned.
    """
    entry = computable(frozenset({"weight"}), "forward")[0]
    if not layers:
        return [Row(step, "", "model", -1, entry.name, 0.0)]
    # One transfer for all layers.
    shares = torch.stack([entry.function(_flat(layer, parameters)) for layer in layers]).tolist()
    total = sum(layer.size for layer in layers)
    whole = sum(share * layer.size for share, layer in zip(shares, layers, strict=True)) / max(1, total)
    return [Row(step, "", "model", -1, entry.name, whole)] + [
        Row(step, layer.path, layer.kind, layer.depth, entry.name, share)
        for share, layer in zip(shares, layers, strict=True)
        if share > 0
    ]


def alone_rows(step: int, layers: Sequence[Layer], parameters: Mapping[str, Tensor]) -> list[Row]:
    """Measure the weights of one checkpoint: their distribution, and singular values of every matrix.

    Args:
        step: of the checkpoint.
        layers: where its parameters belong.
        parameters: by name, all finite.

    Returns:
        Rows of the tier `weights` that need no other checkpoint.
    """
    seen = _Collected(step, "")
    rows: list[Row] = []
    neighbours = neighbours_of(layers)
    for layer in layers:
        weight = _flat(layer, parameters)
        offered = {"weight": weight, "sorted_weight": _ordered(weight)}
        if layer.path in neighbours:
            offered["neighbour"] = _flat(neighbours[layer.path], parameters)
        seen.add(layer, offered)
        matrices = [matrix for part in layer.parts if (matrix := _matrix(part, parameters)) is not None]
        if matrices:
            rows += _spectrum_rows(step, layer, max(matrices, key=torch.numel))
    return seen.rows() + rows


def neighbours_of(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Find each layer's like in the block before: the same path but for a number, and the same shapes.

    Returns:
        Path -> layer.
    """
    last: dict[tuple[object, ...], Layer] = {}
    found: dict[str, Layer] = {}
    for layer in layers:
        like = _BLOCK_NUMBER.sub("#", layer.path), tuple((part.shape, part.size) for part in layer.parts)
        if like in last:
            found[layer.path] = last[like]
        last[like] = layer
    return found


def _spectrum_rows(step: int, layer: Layer, matrix: Tensor) -> list[Row]:
    spectrum = matrix_spectrum(matrix)
    rows: list[Row] = []
    for entry in computable(frozenset({"spectrum"}), TIER):
        found = entry.function(spectrum)
        if found is None:
            continue
        sure = spectrum.whole or found.high - found.low <= _UNSURE * abs(found.value)
        place = layer.path, layer.kind, layer.depth
        rows.append(Row(step, *place, entry.name, found.value, found.low, found.high, sure))
    return rows


def _change_rows(now: Snapshot, earlier: Sequence[Snapshot], device: torch.device) -> list[Row]:
    before = earlier[0]
    seen = _Collected(now.step, f"since step {before.step}")
    for layer in now.layers:
        weight, start = (_flat(layer, one.parameters, device) for one in (now, before))
        offered = {"change": weight - start, "earlier": start}
        if len(earlier) > 1:
            offered["change_before"] = start - _flat(layer, earlier[1].parameters, device)
        if all(part.parameter in one.moments for part in layer.parts for one in (now, before)):
            offered["moment"] = _flat(layer, now.moments, device)
            offered["moment_before"] = _flat(layer, before.moments, device)
        seen.add(layer, offered)
    return seen.rows()


def _increment_rows(now: Snapshot, before: Snapshot, device: torch.device) -> list[Row]:
    seen = _Collected(now.step, f"since step {before.step}")
    keys = {layer.path.rpartition(".")[0]: layer for layer in now.layers if layer.kind == "key"}
    for layer in now.layers:
        other = keys.get(layer.path.rpartition(".")[0])
        if layer.kind != "query" or other is None or layer.path not in now.heads:
            continue
        queries, groups = now.heads[layer.path]
        forms = [
            _by_head(one, parameters.parameters, heads, device)
            for parameters in (before, now)
            for one, heads in ((layer, queries), (other, groups))
        ]
        if any(form is None for form in forms):
            continue
        query, key, later_query, later_key = (form for form in forms if form is not None)
        key, later_key = (one.repeat_interleave(queries // groups, dim=0) for one in (key, later_key))
        if query.shape != key.shape:
            continue
        second, third = increment_spectra(query, key, later_query - query, later_key - key)
        seen.add(layer, {"second_order": second, "third_order": third})
    return seen.rows()


def _by_head(
    layer: Layer, parameters: Mapping[str, Tensor], heads: int, device: torch.device
) -> Tensor | None:
    """A projection as [heads, d_head, width], float64; None where it does not divide."""
    matrices = [matrix for part in layer.parts if (matrix := _matrix(part, parameters)) is not None]
    if len(matrices) != 1 or matrices[0].shape[0] % heads:
        return None
    matrix = matrices[0].to(device, torch.float64)
    return matrix.reshape(heads, -1, matrix.shape[1])


def _flat(layer: Layer, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> Tensor:
    flat = torch.cat([part.gather(tensors[part.parameter].detach()) for part in layer.parts])
    flat = flat if flat.dtype.itemsize >= 4 else flat.float()
    return flat if device is None else flat.to(device)


def _ordered(weight: Tensor) -> Tensor:
    """In ascending order; on the CPU only at the ranks that quantiles and ends are read from, which is faster."""
    if weight.device.type != "cpu":
        return weight.sort().values
    size = weight.numel()
    ranks = {0, size - 1, *(max(1, -(-share * size // 100)) - 1 for share in (1, 25, 50, 75, 99))}
    return torch.from_numpy(np.partition(weight.numpy(), sorted(ranks)))


def _matrix(part: Part, parameters: Mapping[str, Tensor]) -> Tensor | None:
    """A part as a matrix, its outputs first where the part is a stretch of a fused projection; None for vectors."""
    if len(part.shape) < 2 or min(part.shape[0], math.prod(part.shape[1:])) < 2:
        return None
    flat = part.gather(parameters[part.parameter].detach())
    if part.index is None:
        return flat.reshape(part.shape[0], -1)
    width = part.shape[1]
    start = int(part.index[0])
    whole_rows = start % width == 0 and bool((part.index[:width] == torch.arange(start, start + width)).all())
    return flat.reshape(-1, width) if whole_rows else flat.reshape(part.shape[0], -1).T


class _Collected:
    """Values of many layers, brought from the device in one transfer."""

    def __init__(self, step: int, batch: str) -> None:
        self._step, self._batch = step, batch
        self._seen: list[tuple[Layer, Quantity, Tensor]] = []

    def add(self, layer: Layer, offered: Mapping[str, Tensor], needing: str = "") -> None:
        """Evaluate every quantity of the tier whose inputs are offered, and that needs one of them."""
        for entry in computable(frozenset(offered), TIER):
            if needing and needing not in entry.inputs:
                continue
            value = entry.function(**{name: offered[name] for name in entry.inputs})
            self._seen.append((layer, entry, value.double()))

    def rows(self) -> list[Row]:
        """Give a row a value; none where 0 was divided by 0, as for a layer that did not move."""
        return list(self._each())

    def _each(self) -> Iterator[Row]:
        values = fetched([value for _, _, value in self._seen])
        for (layer, entry, _), value in zip(self._seen, values, strict=True):
            row = Row(self._step, layer.path, layer.kind, layer.depth, entry.name, 0.0, batch=self._batch)
            if entry.worst_head is None:
                if math.isfinite(float(value)):
                    yield replace(row, value=float(value))
            elif bool(value.isfinite().all()):
                head = int(value.argmax() if entry.worst_head == "max" else value.argmin())
                yield replace(row, value=float(value[head]))
                yield replace(row, quantity=f"{entry.name}_head", value=float(head))
