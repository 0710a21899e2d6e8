"""Exact products against dense autograd Hessians."""

from __future__ import annotations

import pytest
import torch

from hnf_offline.linalg.hessian import HessianGraph, Part, block_products
from hnf_offline.linalg.operator import Scaled, dense


def small_problem():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(10, 2, generator=generator, dtype=torch.float64)

    def loss(rows: slice):
        def evaluate() -> torch.Tensor:
            return ((torch.tanh(inputs[rows] @ a.T) @ b.T - targets[rows]) ** 2).mean()

        return evaluate

    def of_flat(flat: torch.Tensor) -> torch.Tensor:
        first, second = flat[:12].reshape(3, 4), flat[12:].reshape(2, 3)
        return ((torch.tanh(inputs @ first.T) @ second.T - targets) ** 2).mean()

    exact = torch.autograd.functional.hessian(
        of_flat, torch.cat([a.detach().flatten(), b.detach().flatten()])
    )
    return {"a": a, "b": b}, loss, exact


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("cut", [10, 5, 3])
def test_micro_batches_sum_to_the_dense_hessian(keep, cut):
    parameters, loss, exact = small_problem()
    spans = [slice(first, min(first + cut, 10)) for first in range(0, 10, cut)]
    weights = [(span.stop - span.start) / 10 for span in spans]
    graph = HessianGraph([loss(span) for span in spans], weights, parameters, keep=keep)
    whole = graph.block([Part("a", (3, 4)), Part("b", (2, 3))])
    torch.testing.assert_close(dense(whole), exact, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(loss(slice(0, 10))(), [parameters["a"]])[0]
    torch.testing.assert_close(graph.gradients["a"], expected)


def test_a_block_of_rows_is_the_dense_block():
    parameters, loss, exact = small_problem()
    graph = HessianGraph([loss(slice(0, 10))], [1.0], parameters)
    rows = torch.tensor([4, 5, 6, 7])
    block = graph.block([Part("a", (3, 4), rows), Part("b", (2, 3))])
    chosen = torch.cat([rows, torch.arange(12, 18)])
    torch.testing.assert_close(dense(block), exact[chosen][:, chosen], rtol=1e-12, atol=1e-12)


def test_two_parts_of_one_parameter_share_it():
    parameters, loss, exact = small_problem()
    graph = HessianGraph([loss(slice(0, 10))], [1.0], parameters)
    block = graph.block([Part("a", (3, 4), torch.arange(8, 12)), Part("a", (3, 4), torch.arange(0, 4))])
    chosen = torch.cat([torch.arange(8, 12), torch.arange(0, 4)])
    torch.testing.assert_close(dense(block), exact[chosen][:, chosen], rtol=1e-12, atol=1e-12)


def test_scaling_both_sides():
    parameters, loss, exact = small_problem()
    graph = HessianGraph([loss(slice(0, 10))], [1.0], parameters)
    diagonal = torch.linspace(0.1, 2.0, 18, dtype=torch.float64)
    scaled = Scaled(graph.block([Part("a", (3, 4)), Part("b", (2, 3))]), diagonal)
    torch.testing.assert_close(dense(scaled), diagonal[:, None] * exact * diagonal, rtol=1e-12, atol=1e-12)


def test_a_linear_loss_has_no_curvature():
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    graph = HessianGraph([weight.sum], [1.0], {"w": weight, "u": unused})
    product = graph.block([Part("w", (3,)), Part("u", (2,))])(torch.ones(5, dtype=torch.float64))
    assert product.tolist() == [0.0] * 5


@pytest.mark.parametrize("keep", [True, False])
def test_blocks_that_share_their_graphs_are_those_of_the_dense_hessian(keep):
    parameters, loss, exact = small_problem()
    graph = HessianGraph([loss(slice(0, 4)), loss(slice(4, 10))], [0.4, 0.6], parameters, keep=keep)
    rows = torch.tensor([4, 5, 6, 7])
    blocks = [[Part("b", (2, 3))], [Part("a", (3, 4), rows)], [Part("a", (3, 4)), Part("b", (2, 3))]]
    places = [torch.arange(12, 18), rows, torch.arange(18)]
    vectors = [torch.linspace(-1, 2, len(place), dtype=torch.float64) for place in places]
    for product, place, vector in zip(block_products(graph, blocks, vectors), places, vectors, strict=True):
        torch.testing.assert_close(product, exact[place][:, place] @ vector, rtol=1e-12, atol=1e-12)


def test_a_graph_that_is_not_kept_is_built_once_for_all_products_of_a_round():
    parameters, loss, _ = small_problem()
    evaluated = []

    def counted():
        evaluated.append(1)
        return loss(slice(0, 10))()

    graph = HessianGraph([counted], [1.0], parameters, keep=False)
    evaluated.clear()
    blocks = [[Part("b", (2, 3))], [Part("a", (3, 4))]]
    vectors = [torch.ones(6, dtype=torch.float64), torch.ones(12, dtype=torch.float64)]
    block_products(graph, blocks, vectors)
    assert len(evaluated) == 1


def test_a_graph_that_was_let_go_is_built_again_at_every_round():
    parameters, loss, exact = small_problem()
    built = []

    def counted():
        built.append(1)
        return loss(slice(0, 10))()

    graph = HessianGraph([counted], [1.0], parameters)
    block = graph.block([Part("a", (3, 4)), Part("b", (2, 3))])
    vector = torch.ones(18, dtype=torch.float64)
    assert torch.allclose(block(vector), exact @ vector) and graph.kept and len(built) == 1
    graph.release()
    assert torch.allclose(block(vector), exact @ vector) and not graph.kept and len(built) == 2
