"""The largest singular value of many maps at once by Golub-Kahan bidiagonalisation.

Golub & Kahan 1965; Golub & Van Loan, Matrix Computations (4th ed.), section 10.4. Both sides are fully
reorthogonalised. The maps of a batch step in lock-step: a Jacobian of a sequence map is block-diagonal over the
sequences, so one product serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.batched import orthogonalised, split_length


@dataclass(frozen=True, slots=True)
class SingularValues:
    """The largest singular value of every map of a batch.

    Attributes:
        values: Ritz values, never above the true maximum, [batch].
        residuals: ||A' u - value v|| of the unit Ritz vectors (A v = value u holds exactly): some singular value
            lies within it, [batch].
        certified: residual within the tolerance and the value no longer moving, or the Krylov space exhausted,
            [batch]. A small residual certifies *a* singular value, not the largest.
        vectors: unit right Ritz vectors, [batch, n].
        products: products with the maps that were spent, as many with their transposes.
    """

    values: Tensor
    residuals: Tensor
    certified: Tensor
    vectors: Tensor
    products: int


def largest_singular_values(
    apply: Callable[[Tensor], Tensor],
    apply_transposed: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    residual: float = 0.01,
    minimum: int = 3,
    maximum: int = 20,
) -> SingularValues:
    """Find sigma_max of every map from a start vector each.

    With V and U the orthonormal bases built so far, A V = U B and A' U = V B' + beta v e_k' for an upper
    bidiagonal B; its largest singular value is the Ritz value, and beta times the last entry of B's left singular
    vector the residual. Stops when every map has settled, at `maximum` products, or when all Krylov spaces are
    exhausted. One transfer to the host a step.

    Args:
        apply: A, [batch, n] -> [batch, m], every row by its own map.
        apply_transposed: its transpose, [batch, m] -> [batch, n].
        start: any vectors with some weight on the wanted ones, [batch, n]; gives dtype and device.
        residual: relative residual, and relative movement of the value, to stop at.
        minimum: least number of products.
        maximum: greatest number of products.

    Returns:
        Values with residuals. A map that is not finite has value NaN and residual inf.

    Raises:
        ValueError: if a start vector is zero or not finite.
    """
    count, size = start.shape
    length = torch.linalg.vector_norm(start, dim=1)
    if not bool(((length > 0) & length.isfinite()).all()):
        raise ValueError(f"start vectors of lengths {length.tolist()}")
    rights = (start / length[:, None])[:, None]  # [batch, k, n]
    lefts: Tensor | None = None  # [batch, k, m]
    scale = torch.zeros_like(length)
    bidiagonal = torch.zeros(count, maximum + 1, maximum + 1, dtype=torch.float64)
    previous = torch.full((count,), torch.inf, dtype=torch.float64)
    rounding = torch.finfo(start.dtype).eps * size**0.5
    exhausted = torch.zeros(count, dtype=torch.bool)
    for k in range(maximum):
        image = apply(rights[:, -1])
        if lefts is not None:
            image = orthogonalised(image, lefts)
        alpha, left, scale = split_length(image, scale)
        lefts = left[:, None] if lefts is None else torch.cat([lefts, left[:, None]], dim=1)
        beta, right, scale = split_length(orthogonalised(apply_transposed(left), rights), scale)
        on_host = torch.stack([alpha, beta]).to("cpu", torch.float64)
        finite = on_host.isfinite().all(dim=0) & bidiagonal.isfinite().flatten(1).all(dim=1)
        bidiagonal[:, k, k], bidiagonal[:, k, k + 1] = on_host
        outer, inner, transposed = torch.linalg.svd(bidiagonal[:, : k + 1, : k + 1].nan_to_num(0.0, 0.0, 0.0))
        values = inner[:, 0]
        residuals = on_host[1] * outer[:, k, 0].abs()
        exhausted |= (on_host[1] == 0) | (k + 1 == size)
        residuals = torch.where(exhausted, rounding * values, residuals)
        settled = (residuals <= residual * values) & ((values - previous).abs() <= residual * values)
        certified = finite & (exhausted | (settled & (k + 1 >= minimum)))
        if bool((certified | ~finite).all()) or k + 1 == maximum:
            break
        previous = values
        rights = torch.cat([rights, right[:, None]], dim=1)
    weights = transposed[:, 0].to(start)
    vectors = torch.einsum("bkn,bk->bn", rights, weights)
    return SingularValues(
        torch.where(finite, values, torch.nan).to(start),
        torch.where(finite, residuals, torch.inf).to(start),
        certified.to(start.device),
        torch.nn.functional.normalize(vectors, dim=1),
        k + 1,
    )
