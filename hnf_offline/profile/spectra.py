"""Eigenvalues of the replayed loss at one checkpoint: of the whole model, and of every layer's diagonal block.

Raw, and as the optimizer sees them. What a value rests on is decided here: exact products, but for the raw curvature
of layers at the accuracy `screen`, which differences of gradients give for less. Never S: under the step metric a
difference of the usual step is far too long along the entries with the smallest gradients (on the sample run steady S
came out at 7.9 where it is 1), and steps are not calibrated in that metric.
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
from hnf_offline.profile.second_look import ALARMED, second_look
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.suffix.blocks import call_order
from hnf_offline.profile.suffix.calibration import Calibration, all_exact, calibrate
from hnf_offline.profile.whole import Hessian, allows_differences, block_of_all, whole_hessian
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.model.loss import evaluate

#: Least products for the whole model's spectra where layers follow: they start from several of its eigenvectors.
WHOLE_MINIMUM = 10
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
    """Say whether all products are to be exact.

    Returns:
        False at the accuracy `screen` in float32.
    """
    return rule.residual < SCREEN.residual or not allows_differences(subject.module)


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
        far = replace(rule, minimum=max(rule.minimum, WHOLE_MINIMUM))
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
    assert whole.raw is not None
    exact = wants_exact(subject, rule)
    batches = subject.batches
    if len(subject.training_batches) > 1:
        batches = subject.training_batches[0]
        hessian = whole_hessian(
            subject.module, batches, exact=exact or metric is not None, keep_graphs=subject.keep_graphs
        )
    calibration = settled_products(subject, noise, exact=exact, pattern=pattern)
    # A difference is taken from a gradient that came the same way, by the same kernels.
    differed = hessian if exact else whole_hessian(subject.module, batches, exact=False, keep_graphs=False)
    made = partial(
        LayerProducts,
        subject.module,
        batches,
        keep_graphs=subject.keep_graphs,
        lot_bytes=subject.lot_bytes,
    )
    products = made(differed, calibration, copies=subject.copies)
    certain = all_exact(calibration.order, subject.layers)
    exact_products = made(hessian, certain, copies=1)
    chosen = [
        (layer, span)
        for layer, span in spans(subject.layers)
        if pattern is None or fnmatchcase(layer.path, pattern)
    ]
    raw: list[LayerProblem] = []
    scaled: list[LayerProblem] = []
    for layer, span in chosen:
        assert whole.raw_others is not None
        raw.append(_problem(layer, rule, None, noise, whole.raw.vector[span], whole.raw_others[span]))
        if metric is not None and whole.scaled is not None and whole.scaled_others is not None:
            root = hessian.block(layer.parts).flatten(metric).sqrt()
            known = whole.scaled.vector[span], whole.scaled_others[span]
            scaled.append(_problem(layer, replace(rule, ends="largest"), root, noise, *known))
    foreseen = Foreseen.of(subject, pattern)
    if exact:  # the two share graphs, where these are not kept
        both = layer_extremes(exact_products, raw + scaled, certain, partial(_tell, foreseen, 0.0, 1.0))
        of_raw, ratios = both[: len(raw)], both[len(raw) :]
    else:
        share = len(raw) / (len(raw) + len(scaled))
        of_raw = layer_extremes(products, raw, calibration, partial(_tell, foreseen, 0.0, share))
        ratios = layer_extremes(exact_products, scaled, certain, partial(_tell, foreseen, share, 1.0))
    if rule.residual > CERTIFIED.residual:
        ratios = second_look(exact_products, certain, scaled, ratios, noise)
    of_scaled = {problem.layer.path: one for problem, one in zip(scaled, ratios, strict=True)}
    return [
        LayerSpectra(
            layer,
            extremes,
            of_scaled.get(layer.path),
            calibration.method(layer),
            0.0 if layer.path in calibration.exact else calibration.errors.get(layer.path, float("nan")),
        )
        for (layer, _), extremes in zip(chosen, of_raw, strict=True)
    ]


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
    subject: Subject, noise: Noise, *, exact: bool, pattern: str | None = None
) -> Calibration:
    """Say how each layer's products are made; found out the first time, on the weights that are in the module then.

    Args:
        subject: module, rows, and the choice where it was made before.
        noise: vectors to compare on.
        exact: all of them exactly.
        pattern: glob over the paths of layers that will be measured, None for all.

    Returns:
        The calibration.
    """
    if subject.products.calibration is None:
        batch = replace(subject.batches[0].split(CALIBRATION_ROWS)[0], weight=1.0)
        order = call_order(subject.module, partial(_repeated, subject.module, batch))
        subject.products.calibrated_at = None if exact else subject.step
        foreseen = Foreseen.of(subject, pattern)
        subject.products.calibration = (
            all_exact(order, subject.layers)
            if exact
            else calibrate(subject.module, order, subject.layers, batch, noise, foreseen.tell_calibration)
        )
    return subject.products.calibration


def _repeated(module: nn.Module, batch: MicroBatch, times: int) -> object:
    tokens, labels = (
        None if rows is None else rows.repeat([times] + [1] * (rows.ndim - 1))
        for rows in (batch.tokens, batch.labels)
    )
    assert tokens is not None
    return evaluate(module, tokens, labels)


def _tell(foreseen: Foreseen, start: float, stop: float, done: int, total: int, part: float) -> None:
    # Raw and scaled spectra may be solved one after the other: each is a part of a layer's work.
    foreseen.tell_layers(start + (stop - start) * part)


def _tell_whole(foreseen: Foreseen, start: float, stop: float, rule: StopRule, products: int) -> None:
    usual = rule.minimum + _BEYOND_MINIMUM
    foreseen.tell_whole(start + (stop - start) * min(1.0, products / usual))
