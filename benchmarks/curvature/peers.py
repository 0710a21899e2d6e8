"""Published tools, each used as its documentation shows for one layer at a time, and the naive way."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor

from benchmarks.curvature.model import NextToken
from benchmarks.curvature.problem import WHOLE, Answer, Found, Method, Problem


@contextmanager
def only(problem: Problem, target: str) -> Iterator[None]:
    """Let only a target's parameters require a gradient, which is how PyHessian is told of a layer."""
    wanted = problem.parameters(target)
    for name, parameter in problem.module.named_parameters():
        parameter.requires_grad_(name in wanted)
    try:
        yield
    finally:
        for parameter in problem.module.parameters():
            # PyHessian leaves gradients with their graphs behind, which would never be freed.
            parameter.grad = None
            parameter.requires_grad_(True)


def pyhessian(problem: Problem, tolerance: float) -> Answer:
    """Run PyHessian 0.1: power iteration until the value changes by less than the tolerance.

    Returns:
        By target.
    """
    from pyhessian import hessian as module_of_class

    answer: dict[str, Found] = {}
    torch.manual_seed(0)
    for target in problem.targets:
        with only(problem, target), warnings.catch_warnings(), _counting_products() as count:
            warnings.simplefilter("ignore")  # torch warns of the cycle that backward(create_graph=True) makes
            solver = module_of_class(
                problem.module, NextToken(), data=(problem.tokens, problem.tokens), cuda=False
            )
            values, _ = solver.eigenvalues(maxIter=100, tol=tolerance, top_n=1)
        answer[target] = Found(values[0], len(count))
    return answer


@contextmanager
def _counting_products() -> Iterator[list[None]]:
    import sys

    module = sys.modules["pyhessian.hessian"]
    original = module.hessian_vector_product
    count: list[None] = []

    def counted(*arguments: object) -> object:
        count.append(None)
        return original(*arguments)

    module.hessian_vector_product = counted
    try:
        yield count
    finally:
        module.hessian_vector_product = original


def curvlinops(problem: Problem, tolerance: float, basis: int | None) -> Answer:
    """Run curvlinops' HessianLinearOperator under scipy's eigsh (ARPACK).

    Args:
        problem: checkpoint, rows and targets.
        tolerance: eigsh's tol; 0 is its default.
        basis: eigsh's ncv; None is its default, 20.

    Returns:
        By target.
    """
    from curvlinops import HessianLinearOperator

    answer: dict[str, Found] = {}
    for target in problem.targets:
        operator = HessianLinearOperator(
            problem.module,
            NextToken(),
            list(problem.parameters(target).values()),
            [(problem.tokens, problem.tokens)],
            check_deterministic=False,  # a safeguard of several passes, not part of the work
        )
        products: list[None] = []
        scipy_operator = operator.to_scipy(dtype=np.float32)
        matvec = scipy_operator.matvec

        def counted(vector: np.ndarray, matvec=matvec, products=products) -> np.ndarray:  # type: ignore[no-untyped-def]
            products.append(None)
            return matvec(vector)  # type: ignore[no-any-return]

        scipy_operator.matvec = counted
        start = np.random.default_rng(0).standard_normal(operator.shape[0]).astype(np.float32)
        try:
            values = eigsh(
                scipy_operator, k=1, which="LM", tol=tolerance, ncv=basis, v0=start, return_eigenvectors=False
            )
        except ArpackNoConvergence as error:
            values = error.eigenvalues if len(error.eigenvalues) else [float("nan")]
        answer[target] = Found(float(values[0]), len(products))
    return answer


def eigenthings_operator(problem: Problem, target: str, method: str) -> object:
    """Make hessian-eigenthings' operator for a target by its own parameter filter.

    Returns:
        A HessianOperator.
    """
    from hessian_eigenthings import HessianOperator

    wanted = problem.parameters(target)
    return HessianOperator(
        problem.module,
        [problem.tokens],
        lambda module, tokens: NextToken()(module(tokens), tokens),
        param_filter=None if target == WHOLE else (lambda name, _: name in wanted),
        method=method,
    )


def eigenthings(problem: Problem, method: str, products: int) -> Answer:
    """Run hessian-eigenthings' Lanczos; it takes a number of products and does not stop before.

    Args:
        problem: checkpoint, rows and targets.
        method: "autograd" or "finite_difference" (central).
        products: its max_iter.

    Returns:
        By target.
    """
    from hessian_eigenthings import lanczos

    answer: dict[str, Found] = {}
    for target in problem.targets:
        operator = eigenthings_operator(problem, target, method)
        result = lanczos(operator, k=1, max_iter=products, which="LM", seed=0)
        answer[target] = Found(float(result.eigenvalues[0]), result.iterations)
    return answer


def eigenthings_by_products(problem: Problem, most: int) -> dict[int, Answer]:
    """Read off what its Lanczos would say after 2, 3, ... products from one long run a target.

    Returns:
        Answers by number of products, exact products throughout.
    """
    from hessian_eigenthings import lanczos_tridiagonal

    answers: dict[int, dict[str, Found]] = {count: {} for count in range(2, most + 1)}
    for target in problem.targets:
        operator = eigenthings_operator(problem, target, "autograd")
        size = sum(parameter.numel() for parameter in problem.parameters(target).values())
        start = torch.randn(size, generator=torch.Generator().manual_seed(0))
        run = lanczos_tridiagonal(operator, start, most)
        for count, answer in answers.items():
            matrix = torch.diag(run.alphas[:count])
            matrix = matrix + torch.diag(run.betas[: count - 1], 1) + torch.diag(run.betas[: count - 1], -1)
            values = torch.linalg.eigvalsh(matrix)
            answer[target] = Found(float(values[values.abs().argmax()]), count)
    return dict(answers)


def naive(problem: Problem, tolerance: float) -> Answer:
    """Iterate power steps, each with a product from scratch: what one writes in ten lines.

    Returns:
        By target.
    """
    answer: dict[str, Found] = {}
    torch.manual_seed(0)
    for target in problem.targets:
        parameters = list(problem.parameters(target).values())
        vector = [torch.randn_like(parameter) for parameter in parameters]
        value, before, products = float("nan"), float("inf"), 0
        while products < 100:
            norm = torch.sqrt(_inner(vector, vector))
            vector = [piece / norm for piece in vector]
            gradients = torch.autograd.grad(problem.loss(), parameters, create_graph=True)
            product = torch.autograd.grad(gradients, parameters, grad_outputs=vector)
            products += 1
            value = float(_inner(product, vector))
            if abs(value - before) < tolerance * abs(before):
                break
            before, vector = value, list(product)
        answer[target] = Found(value, products)
    return answer


def _inner(left: list[Tensor] | tuple[Tensor, ...], right: list[Tensor]) -> Tensor:
    return torch.stack([(one * other).sum() for one, other in zip(left, right, strict=True)]).sum()


def peers() -> tuple[Method, ...]:
    """List the peers whose settings do not depend on ours.

    Returns:
        Methods.
    """
    eigsh_default = partial(curvlinops, tolerance=0.0, basis=None)
    eigsh_tuned = partial(curvlinops, tolerance=1e-2, basis=7)
    return (
        Method("PyHessian 0.1, tol 1e-3 (its default)", partial(pyhessian, tolerance=1e-3)),
        Method("PyHessian 0.1, tol 1e-2", partial(pyhessian, tolerance=1e-2), weight=1),
        Method("naive power iteration, tol 1e-3", partial(naive, tolerance=1e-3), weight=1),
        Method("curvlinops 3.0.1 + eigsh, ncv 7, tol 1e-2", eigsh_tuned, weight=2),
        Method("curvlinops 3.0.1 + eigsh, defaults (ncv 20)", eigsh_default, weight=2),
    )
