"""Exact Hessian-vector products of a loss in named parameters, whole or by blocks.

The gradient is built once with its graph; every product, of any block, is one more pass through that graph
(Pearlmutter 1994, Fast exact multiplication by the Hessian). A block's product only walks the part of the graph
that its parameters reach. The graph of attention must come from the math kernel: fused kernels have no second
derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter, or some rows of it, as one stretch of a flat vector.

    Attributes:
        parameter: the parameter's name.
        shape: the parameter's shape.
        index: flat positions inside the parameter, [size]; None for all of it.
    """

    parameter: str
    shape: tuple[int, ...]
    index: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(torch.Size(self.shape).numel()) if self.index is None else int(self.index.numel())

    def gather(self, tensor: Tensor) -> Tensor:
        """Pick this part out of a tensor shaped as the parameter.

        Returns:
            [size].
        """
        flat = tensor.reshape(-1)
        return flat if self.index is None else flat[self.index.to(flat.device)]

    def scatter(self, values: Tensor) -> Tensor:
        """Put [size] values where this part lies, zeros elsewhere.

        Returns:
            A tensor shaped as the parameter.
        """
        if self.index is None:
            return values.reshape(self.shape)
        flat = values.new_zeros(torch.Size(self.shape).numel())
        flat[self.index.to(flat.device)] = values
        return flat.reshape(self.shape)


class HessianProducts(Protocol):
    """Whatever multiplies a Hessian by vectors: exactly, or by differences of gradients."""

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply by a vector that is zero outside some parameters.

        Returns:
            The product restricted to the same parameters, by name.
        """
        ...


class HessianGraph:
    """The Hessian of sum_i w_i loss_i in named parameters.

    Attributes:
        loss: the weighted loss, detached.
        gradients: the weighted gradient by parameter name, detached.
    """

    def __init__(
        self,
        losses: Sequence[Callable[[], Tensor]],
        weights: Sequence[float],
        parameters: Mapping[str, Tensor],
        *,
        keep: bool = True,
    ) -> None:
        """Evaluate the losses and their gradients.

        Args:
            losses: one function a micro-batch, each giving a scalar that depends on the parameters.
            weights: weight of each micro-batch; they should sum to 1.
            parameters: leaves that require a gradient.
            keep: keep the graphs (fast, memory of every micro-batch), or rebuild one at every product.
        """
        self._losses = tuple(losses)
        self._weights = tuple(weights)
        self._parameters = dict(parameters)
        self._keep = keep
        self._graphs: list[dict[str, Tensor]] = []
        self.loss = torch.zeros((), device=next(iter(self._parameters.values())).device)
        self.gradients = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        for function, weight in zip(self._losses, self._weights, strict=True):
            loss, graph = self._differentiate(function)
            self.loss = self.loss + weight * loss.detach()
            for name, gradient in graph.items():
                self.gradients[name] += weight * gradient.detach()
            if keep:
                self._graphs.append(graph)

    @property
    def kept(self) -> bool:
        """Whether graphs are kept from one product to the next."""
        return self._keep

    def release(self) -> None:
        """Let go of the graphs: their memory is free, and every product builds them anew from now on."""
        self._keep = False
        self._graphs.clear()

    def _differentiate(self, function: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = function()
        gradients = torch.autograd.grad(
            loss, list(self._parameters.values()), create_graph=True, materialize_grads=True
        )
        return loss, dict(zip(self._parameters, gradients, strict=True))

    def block(self, parts: Sequence[Part]) -> Block:
        """Give the diagonal block of some parts.

        Returns:
            A symmetric operator over the parts, in their order.
        """
        return Block(self, tuple(parts))

    def product(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the Hessian by a vector that is zero outside some parameters.

        Returns:
            The product restricted to the same parameters, by name.
        """
        return self.products([vectors])[0]

    def products(self, requests: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Multiply the Hessian by several vectors; where graphs are not kept, one is built a micro-batch for all.

        Args:
            requests: vectors by parameter name, each zero outside the parameters that it names.

        Returns:
            One product a request, restricted to the parameters that the request names.
        """
        results: list[dict[str, Tensor]] = [{} for _ in requests]
        for position, weight in enumerate(self._weights):
            graph = self._graphs[position] if self._keep else self._differentiate(self._losses[position])[1]
            for number, (vectors, result) in enumerate(zip(requests, results, strict=True)):
                last = number + 1 == len(requests)
                self._add(result, graph, vectors, weight, retain=self._keep or not last)
            del graph  # before the next one is built
        return results

    def _add(
        self,
        result: dict[str, Tensor],
        graph: Mapping[str, Tensor],
        vectors: Mapping[str, Tensor],
        weight: float,
        *,
        retain: bool,
    ) -> None:
        # A gradient that does not depend on the parameters (a linear loss) has no graph and no curvature.
        curved = [name for name in vectors if graph[name].requires_grad]
        products: list[Tensor | None] = [None] * len(vectors)
        if curved:
            products = list(
                torch.autograd.grad(
                    [graph[name] for name in curved],
                    [self._parameters[name] for name in vectors],
                    grad_outputs=[vectors[name] for name in curved],
                    retain_graph=retain,
                    allow_unused=True,
                )
            )
        for place, name in enumerate(vectors):
            product = products[place]
            products[place] = None  # a large model has no room for two of everything
            if name not in result:
                own = self._parameters[name]
                result[name] = torch.zeros_like(own) if product is None else product * weight
            elif product is not None:
                result[name].add_(product, alpha=weight)


@dataclass(frozen=True, slots=True)
class Block:
    """A diagonal block of a Hessian as a symmetric operator.

    Attributes:
        hessian: the whole.
        parts: which entries, in the order of the flat vector.
    """

    hessian: HessianProducts
    parts: tuple[Part, ...]

    @property
    def dimension(self) -> int:
        """Number of rows."""
        return sum(part.size for part in self.parts)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector into the parts' stretches.

        Returns:
            One [size] view a part.
        """
        edges = [0]
        for part in self.parts:
            edges.append(edges[-1] + part.size)
        return [vector[start:stop] for start, stop in pairwise(edges)]

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Gather the parts out of tensors shaped as the parameters.

        Returns:
            [dimension].
        """
        return torch.cat([part.gather(tensors[part.parameter]) for part in self.parts])

    def placed(self, vector: Tensor) -> dict[str, Tensor]:
        """Lay a flat vector out in tensors shaped as the parameters, zero elsewhere.

        Returns:
            By parameter name.
        """
        vectors: dict[str, Tensor] = {}
        for part, piece in zip(self.parts, self.split(vector), strict=True):
            placed = part.scatter(piece)
            # Two parts of one parameter (query and value rows of a fused weight) share its vector.
            vectors[part.parameter] = (
                vectors[part.parameter] + placed if part.parameter in vectors else placed
            )
        return vectors

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply the block by a vector.

        Returns:
            [dimension].
        """
        return self.flatten(self.hessian.product(self.placed(vector)))


def block_products(
    hessian: HessianGraph, blocks: Sequence[Sequence[Part]], vectors: Sequence[Tensor]
) -> list[Tensor]:
    """Multiply several diagonal blocks, each by its vector, on graphs that they share.

    Args:
        hessian: the whole.
        blocks: the parts of each block.
        vectors: [dimension of its block] each.

    Returns:
        One [dimension of its block] product a block.
    """
    operators = [hessian.block(parts) for parts in blocks]
    products = hessian.products([
        operator.placed(vector) for operator, vector in zip(operators, vectors, strict=True)
    ])
    return [operator.flatten(product) for operator, product in zip(operators, products, strict=True)]
