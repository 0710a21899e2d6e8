"""Both ends of a symmetric operator's spectrum by Lanczos with full reorthogonalisation.

Golub & Van Loan, Matrix Computations (4th ed.), chapter 10; the residual of a Ritz pair is beta_k |s_k|
(Paige 1972), and an eigenvalue lies within it. A small residual certifies *an* eigenvalue, not the extreme one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.operator import SymmetricOperator


@dataclass(frozen=True, slots=True)
class Eigenvalue:
    """One end of the spectrum.

    Attributes:
        value: the Ritz value (a Rayleigh quotient, so never beyond the true extreme).
        residual: ||M y - value y|| of the unit Ritz vector y; an eigenvalue lies within it.
        certified: residual within the tolerance, and the value no longer moving.
    """

    value: float
    residual: float
    certified: bool


@dataclass(frozen=True, slots=True)
class Extremes:
    """Both ends of a spectrum.

    Attributes:
        largest: the algebraically largest eigenvalue.
        smallest: the algebraically smallest.
        vector: unit Ritz vector of the largest, [dimension].
        products: products with the operator that were spent.
    """

    largest: Eigenvalue
    smallest: Eigenvalue
    vector: Tensor
    products: int


def lanczos_extremes(
    operator: SymmetricOperator,
    start: Tensor,
    *,
    residual: float = 0.05,
    minimum: int = 3,
    maximum: int = 32,
    both_ends: bool = True,
) -> Extremes:
    """Find the extreme eigenvalues from a start vector.

    Stops when the largest end's residual is at most `residual` times its size, and the smallest end's at most
    `residual` times the larger of the two sizes (a nearly zero end is not worth hundreds of products), after at
    least `minimum` products; or when `maximum` are spent; or when the Krylov space is exhausted. An end is
    certified only if its residual is small against its own size.

    Args:
        operator: the symmetric operator M.
        start: any vector with some weight on the wanted eigenvectors, [dimension].
        residual: relative residual to stop at.
        minimum: least number of products.
        maximum: greatest number of products.
        both_ends: whether the smallest eigenvalue has to converge too.

    Returns:
        Both ends, each with its residual, and the top Ritz vector.

    Raises:
        ValueError: if the start vector is zero or does not fit.
    """
    size = operator.dimension
    norm = torch.linalg.vector_norm(start)
    if start.shape != (size,) or not float(norm) > 0.0:
        raise ValueError(
            f"start vector of shape {tuple(start.shape)} and norm {float(norm)} for dimension {size}"
        )
    basis = (start / norm).unsqueeze(0)  # [k, dimension]
    alphas: list[float] = []
    betas: list[float] = []
    previous = (float("inf"), float("inf"))
    while True:
        image = operator(basis[-1])
        alpha = image @ basis[-1]
        # Twice is enough: the second pass removes what rounding left of the first (Parlett).
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        beta = torch.linalg.vector_norm(image)
        # One transfer a product; the next product waits for the decision anyway.
        alpha_value, beta_value = torch.stack([alpha, beta]).tolist()
        alphas.append(alpha_value)
        betas.append(beta_value)
        if not torch.isfinite(torch.tensor([alpha_value, beta_value])).all():
            nothing = Eigenvalue(float("nan"), float("inf"), False)
            return Extremes(nothing, nothing, basis[0], len(alphas))
        values, vectors = _tridiagonal(alphas, betas[:-1])
        low, high = float(values[0]), float(values[-1])
        scale = max(abs(low), abs(high))
        residual_low = beta_value * abs(float(vectors[-1, 0]))
        residual_high = beta_value * abs(float(vectors[-1, -1]))
        products = len(alphas)
        rounding = torch.finfo(start.dtype).eps * scale * size**0.5
        exhausted = products == size or beta_value <= max(10 * rounding, torch.finfo(start.dtype).tiny)
        if exhausted:
            residual_low, residual_high = min(residual_low, rounding), min(residual_high, rounding)
        settled_high = _settled(high, previous[1], residual_high, residual * abs(high))
        settled_low = _settled(low, previous[0], residual_low, residual * abs(low))
        close_enough = _settled(low, previous[0], residual_low, residual * scale)
        done = products >= minimum and settled_high and (close_enough or not both_ends)
        if exhausted or done or products >= maximum:
            weights = vectors[:, -1].to(basis)
            return Extremes(
                Eigenvalue(high, residual_high, exhausted or (products >= minimum and settled_high)),
                Eigenvalue(low, residual_low, exhausted or (products >= minimum and settled_low)),
                torch.nn.functional.normalize(basis.T @ weights, dim=0),
                products,
            )
        previous = (low, high)
        basis = torch.cat([basis, (image / beta).unsqueeze(0)])


def _settled(value: float, before: float, size_of_residual: float, allowed: float) -> bool:
    return size_of_residual <= allowed and abs(value - before) <= allowed


def _tridiagonal(alphas: list[float], betas: list[float]) -> tuple[Tensor, Tensor]:
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        off = torch.tensor(betas, dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    return torch.linalg.eigh(matrix)  # type: ignore[no-any-return]
