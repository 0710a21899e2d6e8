"""What is looked at of a map: singular values of its Jacobian, norm of its second derivative."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from hnf_offline.linalg.golub_kahan import SingularValues, largest_singular_values
from hnf_offline.linalg.jacobian import frobenius_norms, linear_maps, token_jacobians
from hnf_offline.linalg.second_derivative import SecondDerivativeNorm, second_derivative_norm
from hnf_offline.linalg.softmax import softmax_spectrum
from hnf_offline.linalg.verification import second_derivative_agrees, transpose_agrees
from hnf_offline.profile.maps.items import NO_DERIVATIVE, TOKENS, Items, LeftOutError
from hnf_offline.profile.maps.rows import MapObservations

#: Widest map whose Jacobian is formed.
WIDEST = 1024
#: Random products for the Frobenius norm of a map that is not formed.
PROBES = 4
#: Climbs to ||D2 f||. Tokens climb together, so five starts are cheap. Sequences cost a graph each and climb twice,
#: from the right singular vector and from a random direction: in a trained decoder (d = 64) 5 starts, 25 alternations
#: and 8 products found 31 % more in attention, 0.2 % more in a block.
_climb_tokens = partial(second_derivative_norm, restarts=5, iterations=10, products=6, together=True)
_climb_sequences = partial(second_derivative_norm, restarts=1, iterations=6, products=4)


def observe_tokens(items: Items, nullity: int, seed: int) -> MapObservations:
    """Look at a map of single tokens: exact Jacobians where it is no wider than `WIDEST`, Golub-Kahan beyond.

    Args:
        items: the tokens.
        nullity: null directions that the map has by construction.
        seed: of random starts.

    Returns:
        Observations of every token.
    """
    inputs, outputs = items.point[0].numel(), items.value[0].numel()
    if min(inputs, outputs) <= WIDEST:
        values = _singular_values(token_jacobians(items.function, items.point))
        kept = values[:, : values.shape[1] - nullity]
        seen = {
            "singular_values": kept,
            "largest_singular_values": kept[:, 0],
            "smallest_singular_values": kept[:, -1],
            "rms_singular_values": kept.square().mean(dim=1).sqrt(),
        }
        first = MapObservations(seen)
    else:
        first, _ = _krylov(items, nullity, seed)
    norm = _climb_tokens(items.function, items.point, seed=seed)
    return _with_second_derivative(first, norm, items, seed)


def observe_sequences(items: Items, seed: int) -> tuple[MapObservations, Tensor]:
    """Look at the Jacobian of a map of sequences: Golub-Kahan.

    Args:
        items: the sequences.
        seed: of random starts.

    Returns:
        Observations of every sequence, and their right singular vectors, [items, n].
    """
    seen, found = _krylov(items, 0, seed)
    return seen, found.vectors


def observe_curved(seen: MapObservations, first: Items, start: Tensor, seed: int) -> MapObservations:
    """Look at the second derivative of a map of sequences, on the first sequence alone.

    Args:
        seen: what was seen of its Jacobian, the first sequence first.
        first: the first sequence.
        start: where to climb from, beside a random direction, [1, n].
        seed: of that direction.

    Returns:
        Observations of the first sequence.
    """
    norm = _climb_sequences(first.function, first.point, seed=seed, starts=start[None])

    def alone(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[:1] for name, value in values.items()}

    one = MapObservations(alone(seen.values), alone(seen.errors), alone(seen.certified))
    return _with_second_derivative(one, norm, first, seed)


def _krylov(items: Items, nullity: int, seed: int) -> tuple[MapObservations, SingularValues]:
    maps = linear_maps(items.function, items.point)
    flat = items.point.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)
    if not bool(transpose_agrees(maps, flat, seed=seed + 2).all()):
        raise LeftOutError(NO_DERIVATIVE)
    found = largest_singular_values(maps.apply, maps.apply_transposed, start)
    frobenius = frobenius_norms(maps.apply, flat, probes=PROBES, seed=seed + 1)
    rank = min(items.point[0].numel(), items.value[0].numel()) - nullity
    seen = MapObservations(
        {"largest_singular_values": found.values, "rms_singular_values": frobenius.values / rank**0.5},
        {"largest_singular_values": found.residuals, "rms_singular_values": frobenius.errors / rank**0.5},
        {"largest_singular_values": found.certified},
    )
    return seen, found


def _with_second_derivative(
    seen: MapObservations, norm: SecondDerivativeNorm, items: Items, seed: int
) -> MapObservations:
    agrees = second_derivative_agrees(items.function, items.point, seed=seed + 3)
    sure = norm.settled & (norm.restarts_agreeing >= 2) & agrees & norm.value.isfinite()
    return MapObservations(
        {
            **seen.values,
            "second_derivative_norms": norm.value,
            "input_norms": items.point.flatten(1).norm(dim=1),
            "output_norms": items.value.flatten(1).norm(dim=1),
        },
        seen.errors,
        {**seen.certified, "second_derivative_norms": sure},
        frozenset({"second_derivative_norms"}),
    )


def _singular_values(jacobians: Tensor) -> Tensor:
    """Descending, [items, k]; NaN where a Jacobian is not finite, which the solver would refuse."""
    finite = jacobians.isfinite().flatten(1).all(dim=1)
    values: Tensor = torch.linalg.svdvals(jacobians.nan_to_num(0.0, 0.0, 0.0))
    return torch.where(finite[:, None], values, torch.nan)


def observe_softmax(scores: Tensor) -> MapObservations | None:
    """Look at the softmax of some queries on the keys that they see.

    Args:
        scores: [sequences, heads, queries, keys], minus infinity where masked.

    Returns:
        Observations of at most `TOKENS` queries a head, evenly spread; None where none of them sees two keys.
    """
    queries = scores.shape[-2]
    chosen = torch.linspace(0, queries - 1, min(TOKENS, queries), device=scores.device).round().long()
    # In float64: the smallest probabilities are the point.
    logits = scores[..., chosen, :].flatten(0, -2).to("cpu", torch.float64)
    keys = (logits > float("-inf")).sum(dim=-1)
    logits, keys = logits[keys >= 2], keys[keys >= 2]
    if not len(keys):
        return None
    spectrum = softmax_spectrum(logits.softmax(dim=-1), keys)
    return MapObservations({
        "largest_singular_values": spectrum.largest,
        "smallest_singular_values": spectrum.smallest,
        "rms_singular_values": spectrum.rms,
    })
