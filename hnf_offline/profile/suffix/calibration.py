"""Is a difference of gradients the product it stands for? Held against exact products, layer by layer, once a run."""

from __future__ import annotations

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
TRIED = (0.25, 4.0)
#: The part of the work that its exact products are.
_EXACT_PART = 0.7
#: Relative error up to which the usual step is kept, and up to which differences are used at all.
GOOD, USABLE = 5e-3, 3e-2


@dataclass(frozen=True, slots=True)
class Calibration:
    """How each layer's products are made.

    Attributes:
        order: the blocks of the module; without blocks where restarts gave something else than the whole pass.
        steps: layer path -> step relative to the layer (`linalg.differences.step_length`).
        errors: layer path -> ||difference - exact|| / ||exact|| on a vector near the top of its spectrum; NaN where
            nothing could be compared.
        exact: paths of layers whose differences are too far off: they get exact products.
        reason: why nothing could be compared, "" where it could.
    """

    order: CallOrder
    steps: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    exact: frozenset[str] = frozenset()
    reason: str = ""

    def method(self, layer: Layer) -> str:
        """Say how a layer's products are made.

        Returns:
            "exact", "suffix differences" or "whole differences".
        """
        if layer.path in self.exact:
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
    return Calibration(order, exact=frozenset(layer.path for layer in layers))


def calibrate(
    module: nn.Module,
    order: CallOrder,
    layers: Sequence[Layer],
    batch: MicroBatch,
    noise: Callable[[int], Tensor],
    on_part: Callable[[float], None] = lambda part: None,
) -> Calibration:
    """Compare one difference with one exact product for every layer.

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
            vectors: dict[str, Tensor] = {}
            exact: dict[str, Tensor] = {}
            for number, layer in enumerate(layers, start=1):
                block = graph.block(layer.parts)
                vectors[layer.path] = _unit(block(noise(layer.size)), noise(layer.size))
                exact[layer.path] = block(vectors[layer.path])
                on_part(_EXACT_PART * number / len(layers))
    except RuntimeError as error:
        # A kernel of the user's own without a second derivative: nothing to compare with.
        reason = (str(error).splitlines() or [""])[0]
        return Calibration(order, reason=reason, errors={layer.path: float("nan") for layer in layers})
    gradients = graph.gradients
    del graph

    def errors(of: Sequence[Layer], step: float, order: CallOrder) -> dict[str, float]:
        # The kernel is the one that the gradient came from: two kernels differ by more than a small step does.
        with sdpa_kernel(SDPBackend.MATH):
            products = SuffixProducts(module, order, [batch], gradients, copies=8)
            found: dict[str, Tensor] = {}
            for group in _by_block(order, of):
                images = products([Request(layer, vectors[layer.path], step) for layer in group])
                for layer, image in zip(group, images, strict=True):
                    truth = exact[layer.path]
                    found[layer.path] = (image - truth).norm() / truth.norm().clamp_min(1e-30)
                if of is layers:
                    on_part(_EXACT_PART + (1 - _EXACT_PART) * len(found) / len(layers))
            values = torch.stack(list(found.values())).tolist() if found else []
        return dict(zip(found, values, strict=True))

    best = errors(layers, usual, order)
    steps = dict.fromkeys(best, usual)
    for factor in TRIED:
        again = [layer for layer in layers if not best[layer.path] <= GOOD]
        for path, found in errors(again, factor * usual, order).items():
            if not found >= best[path]:
                best[path], steps[path] = found, factor * usual
    far = frozenset(layer.path for layer in layers if not best[layer.path] <= USABLE)
    return Calibration(order, steps, best, far)


def _by_block(order: CallOrder, layers: Sequence[Layer]) -> list[list[Layer]]:
    found: dict[int | None, list[Layer]] = {}
    for layer in layers:
        found.setdefault(order.block_of(layer), []).append(layer)
    return list(found.values())


def _unit(vector: Tensor, otherwise: Tensor) -> Tensor:
    length = vector.norm()
    return torch.where(length > 0, vector / length.clamp_min(1e-30), otherwise)
