"""Both ends of a symmetric operator's spectrum by Lanczos with full reorthogonalisation.

Golub & Van Loan, Matrix Computations (4th ed.), chapter 10; the residual of a Ritz pair is beta_k |s_k|
(Paige 1972), and an eigenvalue lies within it. A small residual certifies *an* eigenvalue, not the extreme one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hnf_offline.linalg.extremes import Eigenvalue, Extremes
from hnf_offline.linalg.krylov import KrylovSpace
from hnf_offline.linalg.operator import SymmetricOperator
from hnf_offline.linalg.stopping import STANDARD, Ends, StopRule

__all__ = ["Eigenvalue", "Extremes", "lanczos_extremes"]


def lanczos_extremes(
    operator: SymmetricOperator,
    start: Tensor,
    *,
    rule: StopRule = STANDARD,
    residual: float | None = None,
    minimum: int | None = None,
    maximum: int | None = None,
    ends: Ends | None = None,
) -> Extremes:
    """Find the extreme eigenvalues from a start vector.

    Args:
        operator: the symmetric operator M.
        start: any vector with some weight on the wanted eigenvectors, [dimension].
        rule: when to stop; the arguments after it replace its entries.
        residual: relative residual to stop at.
        minimum: fewest products.
        maximum: most products.
        ends: which ends have to converge.

    Returns:
        Both ends, each with its residual, and the top Ritz vector.

    Raises:
        ValueError: if the start vector is zero or does not fit.
    """
    norm = float(torch.linalg.vector_norm(start))
    if start.shape != (operator.dimension,) or not norm > 0.0:
        raise ValueError(
            f"start vector of shape {tuple(start.shape)} and norm {norm} for dimension {operator.dimension}"
        )
    space = KrylovSpace(
        start,
        replace(
            rule,
            residual=rule.residual if residual is None else residual,
            minimum=rule.minimum if minimum is None else minimum,
            maximum=rule.maximum if maximum is None else maximum,
            ends=rule.ends if ends is None else ends,
        ),
    )
    while not space.finished:
        space.advance(operator(space.vector))
    return space.result()
