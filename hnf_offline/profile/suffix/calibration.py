"""Is a difference of gradients the product it stands for? Held against exact products, layer by layer, once a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.linalg.differences import RELATIVE_STEP
from hnf_offline.linalg.hessian import HessianGraph
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.suffix.blocks import CallOrder, unfused
from hnf_offline.profile.suffix.products import Request, SuffixProducts
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.model.loss import evaluate

#: Steps that are tried, as multiples of the usual one, where that one is not good.
TRIED = (0.25, 0.0625, 4.0)
#: The usual step under the step metric, as a share of that without: a vector there lies on the entries with the
#: smallest gradients, along which the loss bends soonest.
SCALED_SHARE = 0.03
#: The part of the work that its exact products are.
_EXACT_PART = 0.7
#: Relative error up to which the usual step is kept, and up to which differences are used at all.
GOOD, USABLE = 5e-3, 3e-2

#: Gives the diagonal A of the step metric by parameter name, from the gradients; None where it is not known.
Metric = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor] | None]


@dataclass(frozen=True, slots=True)
class Differences:
    """How far differences of each layer's gradient are from products with its block.

    Attributes:
        steps: layer path -> step relative to the layer (`linalg.differences.step_length`).
        errors: layer path -> ||difference - exact|| / ||exact|| on a vector near the top of its spectrum; NaN where
            nothing could be compared.
        exact: paths of layers whose differences are too far off: they get exact products.
    """

    steps: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()

    def error(self, path: str) -> float:
        """Give the relative error of a layer's products.

        Returns:
            0 for exact ones, NaN where it is not known.
        """
        return 0.0 if path in self.exact else self.errors.get(path, math.nan)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How each layer's products are made.

    Attributes:
        order: the blocks of the module; without blocks where restarts gave something else than the whole pass.
        raw: of H_ll.
        scaled: of A_l^1/2 H_ll A_l^1/2; exact where no step metric was known.
        reason: why nothing could be compared, "" where it could.
    """

    order: CallOrder
    raw: Differences = field(default_factory=Differences)
    scaled: Differences = field(default_factory=Differences)
    reason: str = ""

    def of(self, *, scaled: bool) -> Differences:
        """Choose between products under the step metric and without.

        Returns:
            What is known of them.
        """
        return self.scaled if scaled else self.raw

    def method(self, layer: Layer) -> str:
        """Say how products with a layer's H_ll are made.

        Returns:
            "exact", "suffix differences" or "whole differences".
        """
        if layer.path in self.raw.exact:
            return "exact"
        skips = self.order.stage(layer) or self.order.block_of(layer) is not None
        return "suffix differences" if skips else "whole differences"


@dataclass(slots=True)
class ProductChoice:
    """How the layers' products are made: found out once for all checkpoints of a run.

    Attributes:
        calibration: None until it is needed.
        calibrated_at: the step at which layers were compared, None where none were.
    """

    calibration: Calibration | None = None
    calibrated_at: int | None = None


def all_exact(order: CallOrder, layers: Sequence[Layer]) -> Calibration:
    """Choose exact products for every layer.

    Returns:
        The calibration.
    """
    exact = Differences(exact=frozenset(layer.path for layer in layers))
    return Calibration(order, exact, exact)


@dataclass(frozen=True, slots=True)
class _Truth:
    """One product of every layer, made exactly.

    Attributes:
        step: the usual relative step.
        roots: layer path -> D of D H_ll D; absent for H_ll itself.
        vectors: layer path -> D u, for a unit vector u near the top of the spectrum.
        images: layer path -> D H_ll D u.
    """

    step: float
    roots: Mapping[str, Tensor]
    vectors: dict[str, Tensor] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)

    def scaled(self, layer: Layer, vector: Tensor) -> Tensor:
        """Multiply by D."""
        return self.roots[layer.path] * vector if layer.path in self.roots else vector


def calibrate(
    module: nn.Module,
    order: CallOrder,
    layers: Sequence[Layer],
    batch: MicroBatch,
    noise: Callable[[int], Tensor],
    on_part: Callable[[float], None] = lambda part: None,
    *,
    metric: Metric = lambda gradients: None,
) -> Calibration:
    """Compare one difference with one exact product for every layer, without the step metric and with it.

    The vector is the exact image of a random one: it lies near the top of the spectrum, where products are wanted.
    Copies go through the model together as they will later, so this also finds blocks that cannot be skipped and
    rows that cannot be joined.

    Args:
        module: float32 or float64, in eval mode.
        order: its blocks.
        layers: to be calibrated.
        batch: a few rows; the graph of their second derivatives is held.
        noise: gives a seeded unit vector of a size.
        on_part: called now and then with the part of the work that is behind.
        metric: the step metric; without one, scaled products are to be exact.

    Returns:
        The calibration.
    """
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    usual = RELATIVE_STEP[next(iter(parameters.values())).dtype]
    try:
        with sdpa_kernel(SDPBackend.MATH), unfused():
            graph = HessianGraph(
                [lambda: evaluate(module, batch.tokens, batch.labels).loss], [1.0], parameters
            )
            diagonal = metric(graph.gradients)
            truths = [_Truth(usual, {})]
            if diagonal is not None:
                roots = {layer.path: graph.block(layer.parts).flatten(diagonal).sqrt() for layer in layers}
                truths.append(_Truth(SCALED_SHARE * usual, roots))
            for number, layer in enumerate(layers, start=1):
                for truth in truths:
                    _multiply(graph, truth, layer, noise(layer.size))
                on_part(_EXACT_PART * number / len(layers))
    except RuntimeError as error:
        # A kernel of the user's own without a second derivative: nothing to compare with.
        unknown = Differences(errors={layer.path: math.nan for layer in layers})
        return Calibration(order, unknown, unknown, (str(error).splitlines() or [""])[0])
    gradients = graph.gradients
    del graph
    # The kernel is the one that the gradient came from: two kernels differ by more than a small step does.
    with sdpa_kernel(SDPBackend.MATH):
        products = SuffixProducts(module, order, [batch], gradients, copies=8)
        found: list[Differences] = []
        for truth in truths:
            found.append(_steps(products, truth, layers))
            on_part(_EXACT_PART + (1 - _EXACT_PART) * len(found) / len(truths))
    without = all_exact(order, layers).scaled
    return Calibration(order, found[0], found[1] if len(found) > 1 else without)


def _multiply(graph: HessianGraph, truth: _Truth, layer: Layer, noise: Tensor) -> None:
    block = graph.block(layer.parts)
    top = _unit(truth.scaled(layer, block(truth.scaled(layer, noise))), noise)
    truth.vectors[layer.path] = truth.scaled(layer, top)
    truth.images[layer.path] = truth.scaled(layer, block(truth.vectors[layer.path]))


def _steps(products: SuffixProducts, truth: _Truth, layers: Sequence[Layer]) -> Differences:
    """Find each layer's best step, and who has none that is good enough."""
    best = _errors(products, truth, layers, truth.step)
    steps = dict.fromkeys(best, truth.step)
    for factor in TRIED:
        again = [layer for layer in layers if not best[layer.path] <= GOOD]
        for path, error in _errors(products, truth, again, factor * truth.step).items():
            if not error >= best[path]:
                best[path], steps[path] = error, factor * truth.step
    return Differences(steps, best, frozenset(path for path, error in best.items() if not error <= USABLE))


def _errors(
    products: SuffixProducts, truth: _Truth, layers: Sequence[Layer], step: float
) -> dict[str, float]:
    found: dict[str, Tensor] = {}
    for group in _by_block(products.order, layers):
        images = products([Request(layer, truth.vectors[layer.path], step) for layer in group])
        for layer, image in zip(group, images, strict=True):
            exact = truth.images[layer.path]
            difference = truth.scaled(layer, image) - exact
            found[layer.path] = difference.norm() / exact.norm().clamp_min(1e-30)
    values = torch.stack(list(found.values())).tolist() if found else []
    return dict(zip(found, values, strict=True))


def _by_block(order: CallOrder, layers: Sequence[Layer]) -> list[list[Layer]]:
    found: dict[int | None, list[Layer]] = {}
    for layer in layers:
        found.setdefault(order.block_of(layer), []).append(layer)
    return list(found.values())


def _unit(vector: Tensor, otherwise: Tensor) -> Tensor:
    length = vector.norm()
    return torch.where(length > 0, vector / length.clamp_min(1e-30), otherwise)
