"""Which parameter a numbered optimizer state belongs to: decided by group, order and shape, never guessed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hnf_offline.errors import AmbiguousOptimizerError

Shape = tuple[int, ...]
NamedShapes = Sequence[tuple[str, Shape]]

_REMEDY = "save parameter names with the optimizer state (hnf_offline.record does)"

#: Names that trainers leave out of weight decay (transformers 5.23 trainer.py, get_decay_parameter_names).
_NO_DECAY = re.compile(
    r"bias|layernorm|rmsnorm|(?:^|[._])norm(?:$|[._\d])|(?:^|\.)ln_?\w*\.|layer_norm", re.IGNORECASE
)

#: How common trainers choose the parameters of their first (decayed) of two groups.
_DECAYED: tuple[Callable[[str, Shape], bool], ...] = (
    lambda name, shape: len(shape) >= 2 and not _NO_DECAY.search(name),
    lambda name, shape: not _NO_DECAY.search(name),
    lambda _name, shape: len(shape) >= 2,
)

#: Bound on the search; beyond it an assignment counts as ambiguous.
_MOST_STATES = 200_000


def assign_positions(
    groups: Sequence[Sequence[int]], saved: Mapping[int, Shape | None], named: NamedShapes, path: Path
) -> dict[str, int]:
    """Assign each parameter the position of its optimizer state.

    Within a group states come in `named_parameters()` order. If only one way to deal the parameters out
    to the groups fits all shapes, that is it; if several do, the splits common trainers make (weight decay
    for matrices, none for norms and biases) decide, provided that exactly one of their outcomes fits.

    Args:
        groups: the positions in each param_group.
        saved: position -> shape of its state, None where the state holds no tensor.
        named: (name, shape) of the parameters in the model's order.
        path: the file, for error messages.

    Returns:
        Parameter name -> position.

    Raises:
        AmbiguousOptimizerError: when no assignment or more than one fits.
    """
    positions = [position for group in groups for position in group]
    if len(positions) != len(named) or len(set(positions)) != len(positions):
        raise AmbiguousOptimizerError(
            f"the optimizer holds {len(positions)} parameters and the model has {len(named)}, "
            "so its numbered states cannot be assigned without guessing",
            path=path,
            remedy=_REMEDY,
        )
    sequences = [[saved.get(position) for position in group] for group in groups]
    fitting = _interleavings(sequences, [shape for _, shape in named])
    if not fitting:
        raise AmbiguousOptimizerError(
            "the shapes of the optimizer state fit the model's parameters in no order",
            path=path,
            remedy=_REMEDY,
        )
    if len(fitting) > 1:
        fitting = _common_splits(sequences, named)
    if len(fitting) != 1:
        raise AmbiguousOptimizerError(
            f"the numbered optimizer states of {len(groups)} groups fit the parameters in more than one way",
            path=path,
            remedy=_REMEDY,
        )
    remaining = [iter(group) for group in groups]
    return {name: next(remaining[group]) for (name, _), group in zip(named, fitting[0], strict=True)}


def _interleavings(
    sequences: Sequence[Sequence[Shape | None]], shapes: Sequence[Shape]
) -> list[tuple[int, ...]]:
    # Up to two ways to deal parameters in order to groups in order: the group of each parameter.
    # One reachable state is how many of each group are taken; a state keeps at most two ways to reach it.
    reached: dict[tuple[int, ...], list[tuple[int, ...]]] = {(0,) * len(sequences): [()]}
    visited = 0
    for shape in shapes:
        following: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for taken, ways in reached.items():
            for group, sequence in enumerate(sequences):
                at = taken[group]
                if at < len(sequence) and _fits(sequence[at], shape):
                    after = (*taken[:group], at + 1, *taken[group + 1 :])
                    known = following.setdefault(after, [])
                    known.extend((*way, group) for way in ways[: 2 - len(known)])
        visited += len(following)
        if visited > _MOST_STATES:
            return [(), ()]
        reached = following
    return [way for ways in reached.values() for way in ways][:2]


def _common_splits(sequences: Sequence[Sequence[Shape | None]], named: NamedShapes) -> list[tuple[int, ...]]:
    # The distinct outcomes of the splits common trainers make that fit all shapes.
    if len(sequences) != 2:
        return []
    found: dict[tuple[int, ...], None] = {}
    for decayed in _DECAYED:
        for first in (0, 1):
            split = tuple(first if decayed(name, shape) else 1 - first for name, shape in named)
            if _split_fits(split, sequences, named):
                found[split] = None
    return list(found)


def _split_fits(
    split: Sequence[int], sequences: Sequence[Sequence[Shape | None]], named: NamedShapes
) -> bool:
    dealt: list[list[Shape]] = [[], []]
    for group, (_, shape) in zip(split, named, strict=True):
        dealt[group].append(shape)
    return all(
        len(shapes) == len(sequence) and all(map(_fits, sequence, shapes))
        for shapes, sequence in zip(dealt, sequences, strict=True)
    )


def _fits(saved: Shape | None, shape: Shape) -> bool:
    return saved is None or tuple(saved) == tuple(shape)
