"""The gradient and curvature tiers: gradients, extreme eigenvalues and directional curvature of the replayed loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hnf_offline.linalg.extremes import Extremes
from hnf_offline.linalg.hessian import Part
from hnf_offline.linalg.stopping import ACCURACIES, StopRule
from hnf_offline.linalg.vectors import length
from hnf_offline.profile.comparisons import neighbours_of
from hnf_offline.profile.directions import direction_rows
from hnf_offline.profile.estimate import estimate_rows, is_estimable
from hnf_offline.profile.forward import fetched
from hnf_offline.profile.gradients import (
    depth_rows,
    gradient_noise,
    gradients_and_noise,
    moments_of,
    next_update_of,
    noise_rows,
    stored_half,
)
from hnf_offline.profile.local_rate import local_rate_rows
from hnf_offline.profile.metric import adam_tensors, largest_learning_rate
from hnf_offline.profile.noise import Noise
from hnf_offline.profile.rounding import step_metric_of
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.spectra import (
    LayerSpectra,
    layer_spectra,
    settled_products,
    spans,
    wants_exact,
    whole_spectra,
)
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.suffix.calibration import Calibration
from hnf_offline.profile.whole import block_of_all, whole_hessian
from hnf_offline.quantities.gradient_noise import GradientNoise
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.table import Row


def derivative_rows(
    subject: Subject, settings: ProfileSettings, *, stability: bool, curvature: bool
) -> list[Row]:
    """Measure gradients and, if asked, the extreme eigenvalues of the whole Hessian and of every layer's block.

    Returns:
        Rows of the gradient tier; with `stability`, S of the whole model and what follows from its eigenvector;
        with `curvature`, the raw spectrum and every layer's as well.
    """
    module = subject.module
    if not stability:
        together = max(len(half.tokens) for half in subject.halves)
        gradients, groups = gradients_and_noise(module, subject.batches, together)
        return _gradient_rows(subject, gradients, groups) + _learning_rate_rows(subject)
    rule = _rule(settings)
    exact = wants_exact(subject, rule) or subject.optimizer is not None
    hessian = whole_hessian(module, subject.batches, exact=exact, keep_graphs=subject.keep_graphs)
    groups = gradient_noise(module, subject.batches, hessian.gradients)
    rows = _gradient_rows(subject, hessian.gradients, groups) + _learning_rate_rows(subject)
    if not bool(torch.isfinite(hessian.loss)):
        return rows
    metric = step_metric_of(subject.optimizer, hessian.gradients)
    noise = Noise(settings.seed, hessian.loss.device, next(module.parameters()).dtype)
    whole = whole_spectra(subject, hessian, metric, rule, noise, curvature=curvature, pattern=settings.layers)
    if whole.raw is not None:
        rows += _spectrum_rows(subject, "", "model", -1, {"spectrum": whole.raw}, subject.name)
    if whole.scaled is not None and metric is not None:
        spectrum = {"scaled_spectrum": whole.scaled}
        rows += _spectrum_rows(subject, "", "model", -1, spectrum, subject.name, whole.spread)
        rows += _headroom_rows(subject, whole.scaled, whole.spread)
        rows += local_rate_rows(subject, whole.scaled, whole.spread)
        block = block_of_all(hessian, subject.layers)
        rows += direction_rows(subject, hessian.gradients, block, block.flatten(metric))
        rows += _mass_rows(subject, whole.scaled)
    elif is_estimable(subject.optimizer):
        rows += estimate_rows(subject, hessian, rule, noise)
    if not curvature:
        return rows
    found = layer_spectra(subject, hessian, metric, whole, rule, noise, settings.layers)
    return rows + _layer_rows(subject, found)


def settle(subject: Subject, settings: ProfileSettings) -> Calibration:
    """Find out how the layers' products are made, on the weights that are in the module now.

    Returns:
        The calibration, which the subject keeps.
    """
    parameter = next(subject.module.parameters())
    noise = Noise(settings.seed, parameter.device, parameter.dtype)
    return settled_products(subject, noise, _rule(settings), settings.layers)


def _layer_rows(subject: Subject, found: Sequence[LayerSpectra]) -> list[Row]:
    """Curvature of every layer's diagonal block, and how its products were made."""
    name = subject.training_batch_name if len(subject.training_batches) > 1 else subject.name
    rows: list[Row] = []
    for spectra in found:
        layer = spectra.layer
        place = layer.path, layer.kind, layer.depth
        rows += _spectrum_rows(subject, *place, {"spectrum": spectra.raw}, name)
        if spectra.scaled is not None:
            rows += _spectrum_rows(subject, *place, {"scaled_spectrum": spectra.scaled}, name)
        known = not math.isnan(spectra.product_error)
        rows += [
            Row(subject.step, *place, entry.name, spectra.product_error, None, None, known, spectra.method)
            for entry in _of_derivatives(frozenset({"product_error"}))
        ]
    return rows


def _mass_rows(subject: Subject, scaled: Extremes) -> list[Row]:
    """Each layer's share of the least stable direction; no surer than the eigenvector it is read from."""
    rows: list[Row] = []
    for layer, span in spans(subject.layers):
        observed = {"unstable_direction": scaled.vector[span]}
        rows += _evaluate_rows(subject, layer, observed, scaled.largest.certified)
    return rows


def _gradient_rows(
    subject: Subject, gradients: Mapping[str, Tensor], groups: GradientNoise | None
) -> list[Row]:
    optimizer = subject.optimizer
    state = {} if optimizer is None else adam_tensors(optimizer, gradients) or {}
    epsilon = _same_epsilon(optimizer, gradients) if state else None
    moments = moments_of(optimizer, gradients)
    later = {before.path: path for path, before in neighbours_of(subject.layers).items()}
    layers = {layer.path: layer for layer in subject.layers}
    parameters = dict(subject.module.named_parameters())
    # (path, kind, depth), quantity, value; fetched together.
    seen: list[tuple[tuple[str, str, int], Quantity, Tensor]] = []

    def observe(path: str, kind: str, depth: int, offered: Mapping[str, Tensor], *needed: str) -> None:
        for entry in computable(frozenset(offered), "gradient"):
            if not needed or set(needed) & set(entry.inputs):
                value = entry.function(**{name: offered[name] for name in entry.inputs})
                seen.append(((path, kind, depth), entry, value))

    def flat(parts: Sequence[Part], tensors: Mapping[str, Tensor]) -> Tensor:
        pieces = [part.gather(tensors[part.parameter].detach()) for part in parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    norms: dict[str, list[Tensor]] = {"gradient": [], "weight": [], "next_update": []}
    everything = [part for layer in subject.layers for part in layer.parts]
    targets = [("", "model", -1, everything)]
    targets += [(layer.path, layer.kind, layer.depth, list(layer.parts)) for layer in subject.layers]
    for path, kind, depth, parts in targets:
        offered = {"gradient": flat(parts, gradients)}
        if state:
            offered["second_moment"] = flat(parts, state["second_moment"])
            offered["epsilon"] = flat(parts, state["epsilon"]) if epsilon is None else epsilon
        if all(part.parameter in moments for part in parts):
            offered["moment"] = flat(parts, moments)
        if path:
            offered["weight"] = flat(parts, parameters)
            update = next_update_of(optimizer, layers[path], gradients, parameters)
            if update is not None:
                offered["next_update"] = update
                half = stored_half(optimizer, layers[path], parameters)
                if half is not None:
                    offered["stored_as"] = update.new_empty(0, dtype=half)
            for name, each in norms.items():
                if name in offered:
                    each.append(length(offered[name]))
        if path in later:
            offered["later_gradient"] = flat(layers[later[path]].parts, gradients)
        observe(path, kind, depth, offered)
    if len(norms["next_update"]) == len(subject.layers):
        # Ratios of norms need no vector of the whole model: the norm of the layers' norms is its norm.
        of_all = {name: torch.stack(each) for name, each in norms.items()}
        observe("", "model", -1, of_all, "next_update")
    values = [float(value) for value in fetched([value.double() for _, _, value in seen])]
    told = list(zip(seen, values, strict=True))
    # 0 / 0 is no finding: a layer without gradient has no direction. A gradient that is not finite is told as such.
    rows = [
        Row(subject.step, *place, entry.name, value, batch=subject.name)
        for (place, entry, _), value in told
        if math.isfinite(value) or entry.name in {"gradient.norm", "adam.lag_rms"}
    ]
    by_layer = {place[0]: value for (place, entry, _), value in told if entry.name == "gradient.norm"}
    return rows + depth_rows(subject, by_layer) + noise_rows(subject, groups)


def _same_epsilon(optimizer: OptimizerState | None, gradients: Mapping[str, Tensor]) -> Tensor | None:
    """Adam's epsilon as one number where all parameters have the same: no vector of the model's size is needed."""
    assert optimizer is not None
    known = {optimizer.parameters[name].eps or 0.0 for name in gradients}
    return next(iter(gradients.values())).new_tensor(known.pop()) if len(known) == 1 else None


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
    state = subject.optimizer
    # Beside an estimate the rate would look as if a state had been read.
    rate = None if state is None or is_estimable(state) else largest_learning_rate(state)
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


def _rule(settings: ProfileSettings) -> StopRule:
    return ACCURACIES[settings.accuracy]
