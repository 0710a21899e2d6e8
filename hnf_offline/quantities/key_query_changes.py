"""How the bilinear form of attention scores moves between checkpoints.

A head's scores are x' Q' K x with Q = W_q, K = W_k of the head, [d_head, width]. From one checkpoint to the next the
form changes by dQ'K + Q'dK (d2 in the source) and by dQ'dK (d3). `second_order` and `third_order` hold the
singular values of these forms, [heads, rank], computed from matrices no larger than 2 d_head. Q and K are those of the
earlier checkpoint, so that d2 + d3 is the whole change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor

_SOURCE = "Huang et al. 2026, mechanism-driven monitors (arXiv 2606.28116)"
_LAYERS = (
    "every query projection of known heads that has a key projection beside it; not at the first checkpoint"
)
_READING = "Compare with a healthy run of the same setup: its abnormal fall precedes divergence by thousands of steps."
_CANNOT = "Alone it has no healthy level; rotary positions and biases are left out of the form."


def increment_spectra(
    query: Tensor, key: Tensor, query_change: Tensor, key_change: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute singular values of dQ'K + Q'dK and of dQ'dK for every head.

    With A = [s dQ; Q] and B = [K / s; dK] the first form is A'B, whatever s is; the one taken here makes the product of
    the norms least. The squares of the singular values of A'B are the eigenvalues of L' (BB') L with AA' = LL', a
    matrix of 2 d_head rows.

    Args:
        query: [..., heads, d_head, width], float64, at the earlier checkpoint.
        key: [..., heads, d_head, width].
        query_change: [..., heads, d_head, width].
        key_change: [..., heads, d_head, width].

    Returns:
        [..., heads, min(2 d_head, width)] and [..., heads, min(d_head, width)], descending; 0 where they are below what
        the arithmetic resolves, about 1e-7 ||A||_F ||B||_F.

    Source: Huang et al. 2026 (arXiv 2606.28116).
    """
    import torch

    query_norm, key_norm, query_moved, key_moved = (
        torch.linalg.matrix_norm(one, keepdim=True) for one in (query, key, query_change, key_change)
    )
    rest = torch.finfo(query.dtype).eps * query_norm * key_norm
    scale = (query_norm * key_norm / (query_moved * key_moved).maximum(rest)).sqrt()
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
    left = torch.cat([scale * query_change, query], dim=-2)
    right = torch.cat([key / scale, key_change], dim=-2)
    return _of_product(left, right), _of_product(query_change, key_change)


def _of_product(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of A'B, of A and B [..., rows, width]; in descending order."""
    import torch

    rows, width = left.shape[-2:]
    left_gram, right_gram = left @ left.mT, right @ right.mT
    size, other = (gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) for gram in (left_gram, right_gram))
    rounding = rows * torch.finfo(left.dtype).eps
    # So much more on the diagonal is within rounding, and makes dependent rows factorise as well.
    more = rounding * size + torch.finfo(left.dtype).tiny
    factor = torch.linalg.cholesky_ex(left_gram + torch.diag_embed(more.expand(*size.shape[:-1], rows))).L
    squares = torch.linalg.eigvalsh(factor.mT @ right_gram @ factor).flip(-1)[..., :width]
    return torch.where(squares > 4 * rounding * size * other, squares, 0.0).sqrt()


def _norm(singular_values: Tensor) -> Tensor:
    return singular_values.square().sum(dim=-1).sqrt()


def _stable_rank(singular_values: Tensor) -> Tensor:
    squares = singular_values.square()
    return squares.sum(dim=-1) / squares.amax(dim=-1)


def _effective_rank(singular_values: Tensor) -> Tensor:
    squares = singular_values.square()
    shares = squares / squares.sum(dim=-1, keepdim=True)
    return (-(shares * shares.clamp_min(1e-300).log()).sum(dim=-1)).exp()


@quantity(
    "increment.qk2_norm",
    unit="nats / activation^2 * sqrt(d_head)",
    formula="||dQ'K + Q'dK||_F, largest head",
    reference=_SOURCE,
    tier="weights",
    layers=_LAYERS,
    worst_head="max",
    reading="How far a head's scores moved; a head far above the others is about to dominate.",
    cannot=_CANNOT,
)
def second_order_norm(second_order: Tensor) -> Tensor:
    """Frobenius norm of the second-order change of each head's form.

    Returns:
        [..., heads].
    """
    return _norm(second_order)


@quantity(
    "increment.qk2_stable_rank",
    unit="1",
    formula="||D||_F^2 / ||D||_2^2, D = dQ'K + Q'dK, lowest head",
    reference=_SOURCE,
    tier="weights",
    layers=_LAYERS,
    worst_head="min",
    reading=_READING,
    cannot=_CANNOT,
)
def second_order_stable_rank(second_order: Tensor) -> Tensor:
    """Stable rank of the second-order change of each head's form.

    Returns:
        [..., heads].
    """
    return _stable_rank(second_order)


@quantity(
    "increment.qk2_effective_rank",
    unit="1",
    formula="exp(-sum p_i log p_i), p_i = s_i^2 / sum_j s_j^2, s of dQ'K + Q'dK, lowest head",
    reference=_SOURCE,
    tier="weights",
    layers=_LAYERS,
    worst_head="min",
    reading=_READING,
    cannot=_CANNOT,
)
def second_order_effective_rank(second_order: Tensor) -> Tensor:
    """Effective rank of the second-order change of each head's form.

    Returns:
        [..., heads].
    """
    return _effective_rank(second_order)


@quantity(
    "increment.qk3_norm",
    unit="nats / activation^2 * sqrt(d_head)",
    formula="||dQ'dK||_F, largest head",
    reference=_SOURCE,
    tier="weights",
    layers=_LAYERS,
    worst_head="max",
    reading="Small against qk2_norm while weights move little between checkpoints.",
    cannot=_CANNOT,
)
def third_order_norm(third_order: Tensor) -> Tensor:
    """Frobenius norm of the third-order change of each head's form.

    Returns:
        [..., heads].
    """
    return _norm(third_order)


@quantity(
    "increment.qk3_stable_rank",
    unit="1",
    formula="||D||_F^2 / ||D||_2^2, D = dQ'dK, lowest head",
    reference=_SOURCE,
    tier="weights",
    layers=_LAYERS,
    worst_head="min",
    reading=_READING,
    cannot=_CANNOT,
)
def third_order_stable_rank(third_order: Tensor) -> Tensor:
    """Stable rank of the third-order change of each head's form.

    Returns:
        [..., heads].
    """
    return _stable_rank(third_order)


@quantity(
    "increment.qk3_effective_rank",
    unit="1",
    formula="exp(-sum p_i log p_i), p_i = s_i^2 / sum_j s_j^2, s of dQ'dK, lowest head",
    reference=_SOURCE,
    tier="weights",
    layers=_LAYERS,
    worst_head="min",
    reading=_READING,
    cannot=_CANNOT,
)
def third_order_effective_rank(third_order: Tensor) -> Tensor:
    """Effective rank of the third-order change of each head's form.

    Returns:
        [..., heads].
    """
    return _effective_rank(third_order)
