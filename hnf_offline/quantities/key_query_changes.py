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

    With A = [dQ; Q] and B = [K; dK] the first form is A'B, and the squares of its singular values are the eigenvalues
    of L' (BB') L with AA' = LL', a matrix of 2 d_head rows. dQdQ' and dKdK' are blocks of AA' and BB'.

    Args:
        query: [..., d_head, width], float64, at the earlier checkpoint; all that stands before is one head or another.
        key: [..., d_head, width]; of heads that share one, 1 where the queries have several.
        query_change: as `query`.
        key_change: as `key`.

    Returns:
        [..., min(2 d_head, width)] and [..., min(d_head, width)], descending; 0 where they are below what the
        arithmetic resolves: of the second form about 1e-7 ||dQ||_F ||dK||_F, of the first one 1e-7 times the product of
        the norms of [s dQ; Q] and [K / s; dK], s such that it is least.

    Source: Huang et al. 2026 (arXiv 2606.28116).
    """
    import torch

    rows, width = query.shape[-2:]
    left, right = torch.cat([query_change, query], dim=-2), torch.cat([key, key_change], dim=-2)
    left_gram, right_gram = left @ left.mT, right @ right.mT
    query_moved, query_size = (_size(part) for part in _blocks(left_gram, rows))
    key_size, key_moved = (_size(part) for part in _blocks(right_gram, rows))
    # For this s the norms of [s dQ; Q] and [K / s; dK], whose product is the same, are least; so is rounding then.
    rest = torch.finfo(query.dtype).eps ** 2 * query_size * key_size
    square = (query_size * key_size / (query_moved * key_moved).maximum(rest)).sqrt()
    square = torch.where(square.isfinite() & (square > 0), square, 1.0)
    left_size, right_size = square * query_moved + query_size, key_size / square + key_moved
    of_each_row = torch.cat([left_size / square, left_size], dim=-1).repeat_interleave(rows, dim=-1)
    second = _of_product(left_gram, right_gram, of_each_row, left_size * right_size, width)
    moved = _blocks(left_gram, rows)[0], _blocks(right_gram, rows)[1]
    third = _of_product(*moved, query_moved, query_moved * key_moved, width)
    return second, third


def _blocks(gram: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The blocks on the diagonal, the first one of so many rows."""
    return gram[..., :rows, :rows], gram[..., rows:, rows:]


def _size(gram: Tensor) -> Tensor:
    """Trace, [..., 1]."""
    return gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)


def _of_product(left_gram: Tensor, right_gram: Tensor, scale: Tensor, size: Tensor, width: int) -> Tensor:
    """Singular values of A'B from AA' and BB', descending; `scale` and `size` are what AA' and the squares round to."""
    import torch

    rounding = left_gram.shape[-1] * torch.finfo(left_gram.dtype).eps
    # So much more on the diagonal is within rounding, and makes dependent rows factorise as well.
    definite = left_gram.clone()
    definite.diagonal(dim1=-2, dim2=-1).add_(rounding * scale + torch.finfo(left_gram.dtype).tiny)
    factor = torch.linalg.cholesky_ex(definite).L
    squares = torch.linalg.eigvalsh(factor.mT @ right_gram @ factor).flip(-1)[..., :width]
    return torch.where(squares > 4 * rounding * size, squares, 0.0).sqrt()


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
