"""The gradient and curvature tiers: gradients, extreme eigenvalues and directional curvature of the replayed loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.linalg.hessian import Block, HessianGraph
from hnf_offline.linalg.lanczos import Extremes, lanczos_extremes
from hnf_offline.linalg.operator import Scaled
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.directions import direction_rows
from hnf_offline.profile.metric import adam_tensors, largest_learning_rate, step_metric
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.model.loss import evaluate
from hnf_offline.table import Row

#: Share of a random direction mixed into every start vector, so that no eigenvector is missed by symmetry.
RANDOM_SHARE = 0.05
_Solver = Callable[..., Extremes]
#: Least products for the raw spectrum of the whole model.
WHOLE_MINIMUM = 10


def losses_of(module: nn.Module, batches: Sequence[MicroBatch]) -> list[Callable[[], Tensor]]:
    """Give one loss function a micro-batch, under the attention kernel that has second derivatives.

    Returns:
        Functions without arguments.
    """

    def loss(batch: MicroBatch) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return evaluate(module, batch.tokens, batch.labels).loss

    return [lambda batch=batch: loss(batch) for batch in batches]  # type: ignore[misc]


def derivative_rows(
    subject: Subject, settings: ProfileSettings, *, stability: bool, curvature: bool
) -> list[Row]:
    """Measure gradients and, if asked, the extreme eigenvalues of the whole Hessian and of every layer's block.

    Returns:
        Rows of the gradient tier; with `stability`, S of the whole model and what follows from its eigenvector;
        with `curvature`, the raw spectrum and every layer's as well.
    """
    parameters = {name: value for name, value in subject.module.named_parameters() if value.requires_grad}
    weights = [batch.weight for batch in subject.batches]
    graph = HessianGraph(
        losses_of(subject.module, subject.batches),
        weights,
        parameters,
        keep=subject.keep_graphs and stability,
    )
    metric = None if subject.optimizer is None else step_metric(subject.optimizer, parameters)
    rows = _gradient_rows(subject, graph) + _learning_rate_rows(subject)
    if not stability or not bool(torch.isfinite(graph.loss)):
        return rows
    whole = graph.block([part for layer in subject.layers for part in layer.parts])
    random = _Noise(settings.seed, graph.loss.device, next(iter(parameters.values())).dtype)
    find = partial(lanczos_extremes, residual=settings.residual, maximum=settings.products)
    raw: Extremes | None = None
    if curvature:
        # One run for the whole model costs little beside all layers: let its far end come into sight as well.
        raw = find(whole, random(whole.dimension), minimum=WHOLE_MINIMUM)
        rows += _spectrum_rows(subject, "", "model", -1, {"spectrum": raw}, subject.name)
    scaled: Extremes | None = None
    if metric is not None:
        flat_metric = whole.flatten(metric)
        start = random(whole.dimension)
        scaled = find(Scaled(whole, flat_metric.sqrt()), start, both_ends=False)
        spread = _spread_over_batches(subject, parameters, flat_metric, start, find)
        rows += _spectrum_rows(subject, "", "model", -1, {"scaled_spectrum": scaled}, subject.name, spread)
        rows += _headroom_rows(subject, scaled, spread)
        rows += direction_rows(subject, graph.gradients, whole, flat_metric)
    if scaled is not None:
        rows += _mass_rows(subject, whole, scaled)
    if raw is None:
        return rows
    if len(subject.training_batches) > 1:
        # Layers are replayed on one training batch: half the cost, and what the optimizer sees in one step.
        first = subject.training_batches[0]
        graph = HessianGraph(
            losses_of(subject.module, first),
            [batch.weight for batch in first],
            parameters,
            keep=subject.keep_graphs,
        )
    return rows + _layer_rows(subject, settings, graph, whole, metric, raw, scaled, random)


@dataclass(frozen=True, slots=True)
class _Noise:
    """Seeded start vectors, drawn on the CPU so that every device starts alike."""

    seed: int
    device: torch.device
    dtype: torch.dtype

    def __call__(self, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(drawn, dim=0).to(self.device, self.dtype)


def _spread_over_batches(
    subject: Subject, parameters: Mapping[str, Tensor], flat_metric: Tensor, start: Tensor, find: _Solver
) -> tuple[float, float] | None:
    """Smallest and largest S over single training batches; None where there are not two."""
    if len(subject.training_batches) < 2:
        return None
    found: list[float] = []
    for batches in subject.training_batches:
        weights = [batch.weight for batch in batches]
        graph = HessianGraph(
            losses_of(subject.module, batches), weights, parameters, keep=subject.keep_graphs
        )
        block = graph.block([part for layer in subject.layers for part in layer.parts])
        found.append(find(Scaled(block, flat_metric.sqrt()), start, both_ends=False).largest.value)
    return min(found), max(found)


def _layer_rows(
    subject: Subject,
    settings: ProfileSettings,
    graph: HessianGraph,
    whole: Block,
    metric: Mapping[str, Tensor] | None,
    raw: Extremes,
    scaled: Extremes | None,
    random: _Noise,
) -> list[Row]:
    """Curvature of every layer's diagonal block, and its share of the whole model's least stable direction."""
    rows: list[Row] = []
    find = partial(lanczos_extremes, residual=settings.residual, maximum=settings.products)
    name = subject.training_batch_name if len(subject.training_batches) > 1 else subject.name
    raw_pieces = whole.split(raw.vector)
    scaled_pieces = None if scaled is None else whole.split(scaled.vector)
    for layer, span in _spans(subject):
        if settings.layers is not None and not fnmatchcase(layer.path, settings.layers):
            continue
        block = graph.block(layer.parts)
        noise = random(block.dimension)
        spectrum = find(block, _start(torch.cat(raw_pieces[span]), noise))
        rows += _spectrum_rows(subject, layer.path, layer.kind, layer.depth, {"spectrum": spectrum}, name)
        if metric is not None and scaled_pieces is not None:
            operator = Scaled(block, block.flatten(metric).sqrt())
            start = _start(torch.cat(scaled_pieces[span]), noise)
            top = find(operator, start, both_ends=False)
            rows += _spectrum_rows(
                subject, layer.path, layer.kind, layer.depth, {"scaled_spectrum": top}, name
            )
    return rows


def _mass_rows(subject: Subject, whole: Block, scaled: Extremes) -> list[Row]:
    """Each layer's share of the least stable direction; no surer than the eigenvector it is read from."""
    pieces = whole.split(scaled.vector)
    rows: list[Row] = []
    for layer, span in _spans(subject):
        observed = {"unstable_direction": torch.cat(pieces[span])}
        rows += _evaluate_rows(subject, layer, observed, scaled.largest.certified)
    return rows


def _spans(subject: Subject) -> Iterator[tuple[Layer, slice]]:
    """Each layer with the place of its parts among the parts of all layers.

    Yields:
        Layer and slice.
    """
    place = 0
    for layer in subject.layers:
        yield layer, slice(place, place + len(layer.parts))
        place += len(layer.parts)


def _start(restriction: Tensor, noise: Tensor) -> Tensor:
    """Start a layer's Lanczos from the whole model's eigenvector in that layer: it saves one product in four."""
    norm = restriction.norm()
    if not float(norm) > 1e-12:
        return noise
    mixed: Tensor = (1 - RANDOM_SHARE) * restriction / norm + RANDOM_SHARE * noise
    return mixed


def _gradient_rows(subject: Subject, graph: HessianGraph) -> list[Row]:
    rows: list[Row] = []
    targets: list[tuple[str, str, int, Block]] = [
        ("", "model", -1, graph.block([part for layer in subject.layers for part in layer.parts]))
    ]
    targets += [(layer.path, layer.kind, layer.depth, graph.block(layer.parts)) for layer in subject.layers]
    state = None if subject.optimizer is None else adam_tensors(subject.optimizer, graph.gradients)
    for path, kind, depth, block in targets:
        observations = {"gradient": block.flatten(graph.gradients)}
        if state is not None:
            observations |= {name: block.flatten(tensors) for name, tensors in state.items()}
        for entry in computable(frozenset(observations), "gradient"):
            value = float(entry.function(**{name: observations[name] for name in entry.inputs}))
            rows.append(Row(subject.step, path, kind, depth, entry.name, value, batch=subject.name))
    return rows


def _spectrum_rows(
    subject: Subject,
    path: str,
    kind: str,
    depth: int,
    observations: Mapping[str, Extremes],
    batch: str,
    spread: tuple[float, float] | None = None,
) -> list[Row]:
    rows: list[Row] = []
    for entry in _of_derivatives(frozenset(observations)):
        extremes = observations[entry.inputs[0]]
        end = extremes.smallest if entry.name.endswith("lambda_min") else extremes.largest
        value = float(entry.function(**observations))
        # A Ritz value never overshoots: the true extreme lies between it and an outward step of the residual.
        low, high = (
            (value - end.residual, value) if end is extremes.smallest else (value, value + end.residual)
        )
        if spread is not None:
            low, high = min(low, spread[0]), max(high, spread[1])
        rows.append(Row(subject.step, path, kind, depth, entry.name, value, low, high, end.certified, batch))
    return rows


def _of_derivatives(offered: frozenset[str]) -> tuple[Quantity, ...]:
    # S is of the cheaper tier for the whole model and of the dearer one for layers: the inputs decide.
    return computable(offered, "stability") + computable(offered, "curvature")


def _learning_rate_rows(subject: Subject) -> list[Row]:
    rate = None if subject.optimizer is None else largest_learning_rate(subject.optimizer)
    if rate is None:
        return []
    return [
        Row(subject.step, "", "model", -1, entry.name, float(entry.function(rate)))
        for entry in computable(frozenset({"learning_rate"}), "gradient")
    ]


def _headroom_rows(subject: Subject, scaled: Extremes, spread: tuple[float, float] | None) -> list[Row]:
    rate = None if subject.optimizer is None else largest_learning_rate(subject.optimizer)
    top = scaled.largest
    if rate is None or not top.value > 0:
        return []  # no positive curvature: any rate is stable here, and 1 / S says nothing
    highest = max(top.value + top.residual, spread[1] if spread else 0.0)
    lowest = min(top.value, spread[0] if spread and spread[0] > 0 else top.value)
    rows: list[Row] = []
    for entry in _of_derivatives(frozenset({"learning_rate", "stability_ratio"})):
        low, value, high = (
            float(
                entry.function(**{
                    name: {"learning_rate": rate, "stability_ratio": s}[name] for name in entry.inputs
                })
            )
            for s in (highest, top.value, lowest)
        )
        rows.append(
            Row(subject.step, "", "model", -1, entry.name, value, low, high, top.certified, subject.name)
        )
    return rows


def _evaluate_rows(
    subject: Subject, layer: Layer, observations: Mapping[str, Any], certified: bool
) -> list[Row]:
    return [
        Row(
            subject.step,
            layer.path,
            layer.kind,
            layer.depth,
            entry.name,
            float(entry.function(**{name: observations[name] for name in entry.inputs})),
            certified=certified,
            batch=subject.name,
        )
        for entry in _of_derivatives(frozenset(observations))
    ]
