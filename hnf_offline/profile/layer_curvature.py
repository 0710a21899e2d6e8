"""Extreme eigenvalues of every layer's diagonal block, as few forward passes as they allow.

Layers of one block go through the model together (`suffix`), their Lanczos processes step by step with them
(`linalg.lockstep`). A layer whose differences are no products, as the calibration found, gets exact ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.linalg.extremes import Extremes
from hnf_offline.linalg.hessian import HessianGraph, block_products
from hnf_offline.linalg.lockstep import Problem, extremes_together
from hnf_offline.linalg.stopping import StopRule
from hnf_offline.profile.batch import MicroBatch, rows_of
from hnf_offline.profile.counted import CountedGraph
from hnf_offline.profile.effort import spend
from hnf_offline.profile.suffix.blocks import CallOrder, unfused
from hnf_offline.profile.suffix.calibration import Calibration, Differences, all_exact
from hnf_offline.profile.suffix.products import Request, SuffixProducts
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.model.loss import evaluate

#: Called as on_part(problems solved, problems in all, share of the work that is behind).
OnPart = Callable[[int, int, float], None]
#: Products of the problems with these numbers, each with its vector.
Multiply = Callable[[Sequence[int], Sequence[Tensor]], Sequence[Tensor]]
#: Products that a layer takes as a rule, to say how far a group is; what is left of it at least when they are done.
_USUAL_PRODUCTS, _LEAST_LEFT = 5, 0.2


@dataclass(frozen=True, slots=True)
class LayerProblem:
    """One layer's block, raw or scaled, whose extremes are wanted.

    Attributes:
        layer: the layer.
        start: where Lanczos begins, [size].
        rule: when it stops.
        scale: D of D H_ll D, [size]; None for H_ll itself.
        fresh: a random vector for rules that want one, [size].
    """

    layer: Layer
    start: Tensor
    rule: StopRule
    scale: Tensor | None = None
    fresh: Tensor | None = None


def exact_graph(
    module: nn.Module, batches: Sequence[MicroBatch], *, keep: bool, names: frozenset[str] | None = None
) -> HessianGraph:
    """Build the graph of second derivatives on some micro-batches, under the attention kernel that has them.

    Args:
        module: in eval mode.
        batches: micro-batches whose weights sum to 1.
        keep: hold the graphs of all of them, or build one anew at every product.
        names: parameters it is for, None for all.

    Returns:
        The graph.
    """

    def loss(batch: MicroBatch) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH), unfused():
            return evaluate(module, batch.tokens, batch.labels).loss

    parameters = {
        name: value
        for name, value in module.named_parameters()
        if value.requires_grad and (names is None or name in names)
    }
    losses = [partial(loss, batch) for batch in batches]
    return CountedGraph(batches, losses, [batch.weight for batch in batches], parameters, keep=keep)


class LayerProducts:
    """Products of layers' blocks on some micro-batches, by whatever the calibration says.

    Attributes:
        calibration: of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[MicroBatch],
        gradients: Mapping[str, Tensor],
        calibration: Calibration,
        *,
        graph: HessianGraph | None = None,
        copies: int = 1,
        keep_graphs: bool = True,
        lot_bytes: int = 0,
    ) -> None:
        """Take what is known of these rows.

        Args:
            module: in eval mode.
            batches: micro-batches whose weights sum to 1.
            gradients: of their weighted loss, by parameter name, by the kernels that differences will take.
            calibration: of this module.
            graph: of second derivatives on these rows, where there is one; what it keeps is let go before differences
                are made.
            copies: changed copies of a micro-batch that may go through the model together.
            keep_graphs: whether graphs of second derivatives of all micro-batches fit into memory together.
            lot_bytes: where they do not: layers of so many bytes of parameters may share each graph that is built,
                since the vectors of all of them are held then.
        """
        self.calibration = calibration
        self._module, self._batches, self._keep = module, batches, keep_graphs
        self._lot_bytes, self._copies = lot_bytes, copies
        self._gradients, self._graph = gradients, graph
        self._suffix: SuffixProducts | None = None

    def exactly(self, layers: Sequence[Layer]) -> LayerProducts:
        """Give exact products of the same; what differences remember is let go.

        Args:
            layers: that will be multiplied.

        Returns:
            Products on the same graph, unless that was let go.
        """
        self._suffix = None
        there = self._graph is not None and self._graph.kept == self._keep
        return LayerProducts(
            self._module,
            self._batches,
            self._gradients,
            all_exact(self.calibration.order, layers),
            graph=self._graph if there else None,
            keep_graphs=self._keep,
            lot_bytes=self._lot_bytes,
        )

    def groups(self, problems: Sequence[LayerProblem]) -> list[tuple[float, list[int]]]:
        """Put together the problems whose layers share passes, or lie in one block where products are exact.

        Returns:
            (share of a forward pass behind the layers, numbers of problems); exact ones first.
        """
        order = self.calibration.order
        found: dict[tuple[bool, int, bool], list[int]] = {}
        for number, problem in enumerate(problems):
            layer = problem.layer
            key = self.is_exact(problem), order.stage(layer), order.block_of(layer) is not None
            found.setdefault(key, []).append(number)
        groups: list[tuple[float, list[int]]] = []
        lot = 0  # bytes of the last group where others may join it
        for exact, stage, inside in sorted(found, reverse=True):
            share, group = 1 - stage / (len(order.blocks) + 1), found[exact, stage, inside]
            layers = {problems[number].layer.path: problems[number].layer for number in group}
            size = sum(bytes_of(layer, self._gradients) for layer in layers.values())
            if exact and not self._keep and lot and lot + size <= self._lot_bytes:
                before, joined = groups[-1]
                total = len(joined) + len(group)
                groups[-1] = (before * len(joined) + share * len(group)) / total, joined + group
                lot += size
            else:
                groups.append((share, group))
                lot = size if exact else 0
        return groups

    def is_exact(self, problem: LayerProblem) -> bool:
        """Say whether a problem's products are exact.

        Returns:
            As the calibration found for the raw or the scaled block.
        """
        return problem.layer.path in self._differences_of(problem).exact

    def error(self, problem: LayerProblem) -> float:
        """Give the relative error of a problem's products, as it was calibrated.

        Returns:
            0 for exact ones, NaN where it is not known.
        """
        return self._differences_of(problem).error(problem.layer.path)

    def _differences_of(self, problem: LayerProblem) -> Differences:
        return self.calibration.of(scaled=problem.scale is not None)

    def __call__(self, problems: Sequence[LayerProblem], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply the blocks H_ll of some problems of one group, each by its vector.

        Returns:
            One [size of its layer] product a problem.
        """
        exact = self.is_exact(problems[0])
        self._count([problem.layer for problem in problems], exact=exact)
        if exact:
            return block_products(self._exact(), [problem.layer.parts for problem in problems], vectors)
        return self._differences()([
            Request(
                problem.layer,
                vector,
                self._differences_of(problem).steps.get(problem.layer.path),
            )
            for problem, vector in zip(problems, vectors, strict=True)
        ])

    def _count(self, layers: Sequence[Layer], *, exact: bool) -> None:
        rows = rows_of(self._batches)
        for layer in layers:
            share = share_behind(self.calibration.order, layer)
            spend("layer product" if exact else "layer difference", rows, share=share)

    def _exact(self) -> HessianGraph:
        if self._graph is None:
            self._graph = exact_graph(self._module, self._batches, keep=self._keep)
        return self._graph

    def _differences(self) -> SuffixProducts:
        if self._suffix is None:
            if self._graph is not None:
                self._graph.release()
            spend("forward", rows_of(self._batches))
            self._suffix = SuffixProducts(
                self._module, self.calibration.order, self._batches, self._gradients, copies=self._copies
            )
        return self._suffix


def share_behind(order: CallOrder, layer: Layer) -> float:
    """Say which share of a forward pass lies at or behind a layer.

    Args:
        order: the blocks of the module.
        layer: the layer.

    Returns:
        Above 0, at most 1.
    """
    return 1 - order.stage(layer) / (len(order.blocks) + 1)


def bytes_of(layer: Layer, like: Mapping[str, Tensor]) -> int:
    """Give the size of one vector of a layer.

    Args:
        layer: the layer.
        like: tensors in the dtype of its parameters, by parameter name.

    Returns:
        Bytes.
    """
    return sum(part.size * like[part.parameter].element_size() for part in layer.parts)


def layer_extremes(
    products: LayerProducts, problems: Sequence[LayerProblem], on_part: OnPart | None = None
) -> list[Extremes]:
    """Solve many layers' problems, those of one block in lock-step.

    Args:
        products: of the module.
        problems: a layer may occur more than once.
        on_part: called after every round of products.

    Returns:
        One result a problem, in their order.
    """
    results: dict[int, Extremes] = {}
    groups = products.groups(problems)
    behind, total = 0.0, sum(share * len(group) for share, group in groups)
    for share, group in groups:

        def multiply(
            active: Sequence[int], vectors: Sequence[Tensor], group: Sequence[int] = group
        ) -> list[Tensor]:
            return products([problems[group[place]] for place in active], vectors)

        def tell(
            finished: int, part: float, before: float = behind, cost: float = share * len(group)
        ) -> None:
            if on_part is not None:
                on_part(len(results) + finished, len(problems), (before + part * cost) / total)

        solved = extremes_together(
            _telling(multiply, len(group), tell),
            [
                Problem(one.start, one.rule, one.scale, one.fresh)
                for one in (problems[number] for number in group)
            ],
        )
        for number, extremes in zip(group, solved, strict=True):
            results[number] = extremes
        behind += share * len(group)
        if on_part is not None:
            on_part(len(results), len(problems), behind / total)
    return [results[number] for number in range(len(problems))]


def _telling(multiply: Multiply, problems: int, tell: Callable[[int, float], None]) -> Multiply:
    """Tell after every round of products how many problems are finished, and which part of all is behind."""
    rounds = 0

    def told(active: Sequence[int], vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        nonlocal rounds
        images = multiply(active, vectors)
        rounds += 1
        left = max(_LEAST_LEFT, 1 - rounds / _USUAL_PRODUCTS) * len(active) / problems
        tell(problems - len(active), 1 - left)
        return images

    return told


def start_vector(
    noise: Tensor, restriction: Tensor | None = None, previous: Tensor | None = None, share: float = 0.05
) -> Tensor:
    """Choose where a layer's Lanczos begins.

    The whole model's eigenvector in that layer saves one product in four; the layer's own eigenvector at the
    checkpoint before saves a little more. A share of noise keeps every eigenvector in reach.

    Args:
        noise: random unit vector, [size].
        restriction: the whole model's eigenvector in this layer, [size].
        previous: the layer's eigenvector at another checkpoint, [size].
        share: of the noise.

    Returns:
        [size].
    """
    known = torch.zeros_like(noise)
    for vector, weight in ((previous, 1.0), (restriction, 1.0 if previous is None else 0.5)):
        if vector is not None:
            unit = vector / vector.norm().clamp_min(1e-30)
            # The sign of an eigenvector means nothing: add them so that they do not cancel.
            known = known + weight * torch.where(known @ unit < 0, -unit, unit)
    length = known.norm()
    mixed = (1 - share) * known / length.clamp_min(1e-30) + share * noise
    return torch.where(length > 0.5, mixed, noise)
