"""Eigenvalues of the replayed loss at one checkpoint: of the whole model, and of every layer's diagonal block.

Raw, and as the optimizer sees them. What a value rests on is decided here: layers on differences of gradients where
these were calibrated (`rests` says on what more), else, and always at the accuracy `certified`, on exact products; the
whole model on exact ones, but for its raw curvature at `screen`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn

from hnf_offline.linalg.extremes import Eigenvalue, Extremes
from hnf_offline.linalg.hessian import HessianGraph
from hnf_offline.linalg.krylov import KrylovSpace
from hnf_offline.linalg.lockstep import Problem
from hnf_offline.linalg.operator import Scaled, SymmetricOperator
from hnf_offline.linalg.stopping import CERTIFIED, SCREEN, StopRule
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.foreseen import CALIBRATION_ROWS, Foreseen
from hnf_offline.profile.layer_curvature import (
    LayerProblem,
    LayerProducts,
    layer_extremes,
    start_vector,
)
from hnf_offline.profile.noise import Noise
from hnf_offline.profile.rests import rest_on
from hnf_offline.profile.rounding import step_metric_of
from hnf_offline.profile.second_look import ALARMED, second_look
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.suffix.blocks import call_order
from hnf_offline.profile.suffix.calibration import Calibration, all_exact, calibrate
from hnf_offline.profile.whole import Hessian, allows_differences, block_of_all, whole_hessian
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.model.loss import evaluate

#: Least products for the whole model's spectra where layers follow and start from several of its eigenvectors.
WHOLE_MINIMUM = 10
#: The same where they start from the first one only.
_FIRST_MINIMUM = 4
#: Share of noise in a second vector that is made of what is known.
_SECOND_NOISE = 0.2
#: Products that a spectrum of the whole model takes as a rule beyond its least.
_BEYOND_MINIMUM = 4


@dataclass(frozen=True, slots=True)
class WholeSpectra:
    """Of the whole model.

    Attributes:
        raw: of H; None where it was not asked for.
        scaled: of A^1/2 H A^1/2; None where there is no step metric.
        spread: smallest and largest S over single training batches; None where there are not two.
        raw_others: see `others`, of H; None where layers are not asked for.
        scaled_others: likewise of A^1/2 H A^1/2.
    """

    raw: Extremes | None
    scaled: Extremes | None
    spread: tuple[float, float] | None
    raw_others: Tensor | None = None
    scaled_others: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LayerSpectra:
    """Of one layer's diagonal block.

    Attributes:
        layer: the layer.
        raw: of H_ll.
        scaled: of A_l^1/2 H_ll A_l^1/2; None where there is no step metric.
        method: how its products were made.
        product_error: their relative error as calibrated; 0 for exact ones, NaN where it is not known.
    """

    layer: Layer
    raw: Extremes
    scaled: Extremes | None
    method: str
    product_error: float


def wants_exact(subject: Subject, rule: StopRule) -> bool:
    """Say whether products of the whole model are to be exact.

    Returns:
        False at the accuracy `screen` in float32.
    """
    return rule.residual < SCREEN.residual or not allows_differences(subject.module)


def wants_exact_layers(subject: Subject, rule: StopRule) -> bool:
    """Say whether products of layers are to be exact.

    Returns:
        True at the accuracy `certified`, and but for float32.
    """
    return rule.residual <= CERTIFIED.residual or not allows_differences(subject.module)


def whole_spectra(
    subject: Subject,
    hessian: Hessian,
    metric: Mapping[str, Tensor] | None,
    rule: StopRule,
    noise: Noise,
    *,
    curvature: bool,
    pattern: str | None = None,
) -> WholeSpectra:
    """Find the extremes of the whole model's Hessian.

    Args:
        subject: module and rows.
        hessian: on all rows; exact where there is a metric.
        metric: the step metric A by parameter name, None where it is not known.
        rule: the accuracy.
        noise: start vectors.
        curvature: also the raw spectrum, and a second look where S is alarming.
        pattern: glob over the paths of layers that follow, None for all; for progress.

    Returns:
        The spectra.
    """
    foreseen = Foreseen.of(subject, pattern)
    whole = block_of_all(hessian, subject.layers)
    start = noise(whole.dimension)
    raw = raw_others = scaled_others = None
    if curvature:
        least = WHOLE_MINIMUM if rule.fresh else _FIRST_MINIMUM
        far = replace(rule, minimum=max(rule.minimum, least))
        stop = 1.0 if metric is None else 0.5
        space = _space(whole, start, far, noise, partial(_tell_whole, foreseen, 0.0, stop, far))
        raw, raw_others = _told(space), others(space, subject.layers)
        del space  # its basis is as large as many models
    if metric is None:
        return WholeSpectra(raw, None, None, raw_others)
    root = whole.flatten(metric).sqrt()
    one_end = replace(rule, ends="largest")
    far = replace(one_end, minimum=max(rule.minimum, WHOLE_MINIMUM)) if curvature else one_end
    tell = partial(_tell_whole, foreseen, 0.5 if curvature else 0.0, 1.0, far)
    space = _space(Scaled(whole, root), start, far, noise, tell)
    scaled = _told(space)
    if curvature:
        scaled_others = others(space, subject.layers)
    del space
    if curvature and rule.residual > CERTIFIED.residual and scaled.largest.value >= ALARMED:
        again = replace(CERTIFIED, ends="largest")
        scaled = _told(_space(Scaled(whole, root), scaled.vector, again, noise))
    found: list[float] = []
    for batches in subject.training_batches if len(subject.training_batches) > 1 else ():
        part = whole_hessian(subject.module, batches, exact=True, keep_graphs=subject.keep_graphs)
        operator = Scaled(block_of_all(part, subject.layers), root)
        found.append(_told(_space(operator, start, replace(one_end, fresh=0), noise)).largest.value)
    spread = (min(found), max(found)) if found else None
    return WholeSpectra(raw, scaled, spread, raw_others, scaled_others)


def layer_spectra(
    subject: Subject,
    hessian: Hessian,
    metric: Mapping[str, Tensor] | None,
    whole: WholeSpectra,
    rule: StopRule,
    noise: Noise,
    pattern: str | None,
) -> list[LayerSpectra]:
    """Find the extremes of every layer's block.

    Args:
        subject: module and rows; with several training batches, layers are replayed on the first one: half the cost,
            and what the optimizer sees in one step.
        hessian: on all rows.
        metric: the step metric A by parameter name, None where it is not known.
        whole: the whole model's, whose eigenvectors the layers start from.
        rule: the accuracy.
        noise: start vectors.
        pattern: glob over layer paths, None for all.

    Returns:
        One entry a layer.
    """
    calibration = settled_products(subject, noise, rule, pattern)
    chosen = [
        (layer, span)
        for layer, span in spans(subject.layers)
        if pattern is None or fnmatchcase(layer.path, pattern)
    ]
    problems = _problems(chosen, metric, whole, rule, noise)
    exact = wants_exact_layers(subject, rule)
    products = _layer_products(subject, hessian, calibration, exact=exact)
    foreseen = Foreseen.of(subject, pattern)
    solved = layer_extremes(products, problems, partial(_tell, foreseen))
    certain = products.exactly(subject.layers)
    verify = rule.residual < SCREEN.residual
    solved, again = rest_on(products, certain, problems, solved, verify=verify)
    of_raw, ratios = solved[: len(chosen)], solved[len(chosen) :]
    if rule.residual > CERTIFIED.residual:
        ratios = second_look(certain, problems[len(chosen) :], ratios, noise)
    of_scaled = {layer.path: one for (layer, _), one in zip(chosen, ratios, strict=False)}
    found: list[LayerSpectra] = []
    for number, ((layer, _), extremes) in enumerate(zip(chosen, of_raw, strict=True)):
        method = "exact" if number in again else calibration.method(layer)
        error = 0.0 if number in again else calibration.raw.error(layer.path)
        found.append(LayerSpectra(layer, extremes, of_scaled.get(layer.path), method, error))
    return found


def _problems(
    chosen: Sequence[tuple[Layer, slice]],
    metric: Mapping[str, Tensor] | None,
    whole: WholeSpectra,
    rule: StopRule,
    noise: Noise,
) -> list[LayerProblem]:
    """All raw ones, then all scaled ones where there is a metric."""
    assert whole.raw is not None and whole.raw_others is not None
    top, further = whole.raw.vector, whole.raw_others
    problems = [_problem(layer, rule, None, noise, top[span], further[span]) for layer, span in chosen]
    if metric is None or whole.scaled is None or whole.scaled_others is None:
        return problems
    top, further, rule = whole.scaled.vector, whole.scaled_others, replace(rule, ends="largest")
    return problems + [
        _problem(layer, rule, _root(layer, metric), noise, top[span], further[span]) for layer, span in chosen
    ]


def _layer_products(
    subject: Subject, hessian: Hessian, calibration: Calibration, *, exact: bool
) -> LayerProducts:
    batches, known = subject.batches, hessian
    if len(subject.training_batches) > 1:
        if isinstance(hessian, HessianGraph):
            hessian.release()
        batches = subject.training_batches[0]
        known = whole_hessian(subject.module, batches, exact=exact, keep_graphs=subject.keep_graphs)
    graph = known if isinstance(known, HessianGraph) else None
    if graph is not None and not exact:
        # A difference is taken from a gradient that came the same way, by the same kernels.
        known = whole_hessian(subject.module, batches, exact=False, keep_graphs=False)
    return LayerProducts(
        subject.module,
        batches,
        known.gradients,
        calibration,
        graph=graph,
        copies=subject.copies,
        keep_graphs=subject.keep_graphs,
        lot_bytes=subject.lot_bytes,
    )


def _root(layer: Layer, metric: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.gather(metric[part.parameter]) for part in layer.parts]).sqrt()


def spans(layers: Sequence[Layer]) -> Iterator[tuple[Layer, slice]]:
    """Each layer with its place in the flat vector of all layers.

    Yields:
        Layer and slice.
    """
    place = 0
    for layer in layers:
        yield layer, slice(place, place + layer.size)
        place += layer.size


def others(space: KrylovSpace, layers: Sequence[Layer]) -> Tensor:
    """Sum up further Ritz vectors of the whole model within each layer, where each counts as much as any other.

    They are the second and third largest and the smallest: a layer whose own top eigenvector the first Ritz vector
    misses is seldom missed by all of them.

    Args:
        space: of the whole model.
        layers: one after the other in its vectors.

    Returns:
        [dimension]; zero where the space has no further pairs.
    """
    total = torch.zeros_like(space.ritz_vector(-1))
    pairs = 0 if space.pairs is None else len(space.pairs.values)
    for end in (-2, -3, 0):
        if pairs < (2 if end == 0 else -end):
            continue
        vector = space.ritz_vector(end)
        for _, span in spans(layers):
            own = vector[span]
            unit = own / own.norm().clamp_min(torch.finfo(own.dtype).tiny)
            total[span] += torch.where(total[span] @ unit < 0, -unit, unit)
    return total


def _problem(
    layer: Layer, rule: StopRule, root: Tensor | None, noise: Noise, top: Tensor, further: Tensor
) -> LayerProblem:
    own = noise(layer.size)
    if not rule.fresh:
        return LayerProblem(layer, start_vector(own, top), rule, root)
    fresh = noise.fresh(layer.size)
    if rule.independent:
        return LayerProblem(layer, start_vector(own, further, top), rule, root, fresh)
    second = start_vector(fresh, further, share=_SECOND_NOISE)
    return LayerProblem(layer, start_vector(own, top), rule, root, second)


def _space(
    operator: SymmetricOperator,
    start: Tensor,
    rule: StopRule,
    noise: Noise,
    on_product: Callable[[int], None] = lambda products: None,
) -> KrylovSpace:
    fresh = noise.fresh(operator.dimension) if rule.fresh else None
    space = Problem(start, rule, fresh=fresh).space()
    while not space.finished:
        space.advance(operator(space.vector))
        on_product(space.products)
    return space


def _told(space: KrylovSpace) -> Extremes:
    found = space.result()
    # What two products say of one pair of vectors differs by as much as differences are off.
    error = found.asymmetry * max(abs(found.largest.value), abs(found.smallest.value))
    return replace(found, largest=_widened(found.largest, error), smallest=_widened(found.smallest, error))


def _widened(end: Eigenvalue, error: float) -> Eigenvalue:
    return end if math.isnan(error) else replace(end, residual=end.residual + error)


def settled_products(
    subject: Subject, noise: Noise, rule: StopRule, pattern: str | None = None
) -> Calibration:
    """Say how each layer's products are made; found out the first time, on the weights that are in the module then.

    Args:
        subject: module, rows, optimizer state, and the choice where it was made before.
        noise: vectors to compare on.
        rule: the accuracy.
        pattern: glob over the paths of layers that will be measured, None for all.

    Returns:
        The calibration.
    """
    exact = wants_exact_layers(subject, rule)
    if subject.products.calibration is None:
        batch = replace(subject.batches[0].split(CALIBRATION_ROWS)[0], weight=1.0)
        order = call_order(subject.module, partial(_repeated, subject.module, batch))
        subject.products.calibrated_at = None if exact else subject.step
        foreseen = Foreseen.of(subject, pattern)
        chosen = [layer for layer in subject.layers if pattern is None or fnmatchcase(layer.path, pattern)]
        subject.products.calibration = (
            all_exact(order, subject.layers)
            if exact
            else calibrate(
                subject.module,
                order,
                chosen,
                batch,
                noise,
                foreseen.tell_calibration,
                metric=partial(step_metric_of, subject.optimizer),
            )
        )
    known = subject.products.calibration
    return all_exact(known.order, subject.layers) if exact else known  # it may be of another accuracy


def _repeated(module: nn.Module, batch: MicroBatch, times: int) -> object:
    tokens, labels = (
        None if rows is None else rows.repeat([times] + [1] * (rows.ndim - 1))
        for rows in (batch.tokens, batch.labels)
    )
    assert tokens is not None
    return evaluate(module, tokens, labels)


def _tell(foreseen: Foreseen, done: int, total: int, part: float) -> None:
    foreseen.tell_layers(part)


def _tell_whole(foreseen: Foreseen, start: float, stop: float, rule: StopRule, products: int) -> None:
    usual = rule.minimum + _BEYOND_MINIMUM
    foreseen.tell_whole(start + (stop - start) * min(1.0, products / usual))
