"""Checkpoints of different steps that hold the same weights, and which of the steps those weights belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.check.series import Portrait, Series

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How many times longer the detour over any other place has to be for the owner to be told.
_CLEARLY = 1.5


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Checkpoints that hold the same weights.

    Attributes:
        steps: their steps, ascending.
        owner: the step that the weights are really of, None where that cannot be told.
        because: how that is known, "" where it is not.
    """

    steps: tuple[int, ...]
    owner: int | None = None
    because: str = ""

    @property
    def wrong(self) -> tuple[int, ...]:
        """The steps that hold weights of another one; all but the first where the owner is not known."""
        owner = self.steps[0] if self.owner is None else self.owner
        return tuple(step for step in self.steps if step != owner)


def constant(portraits: Sequence[Portrait]) -> set[str]:
    """Find the tensors that are the same in all checkpoints that have them: frozen, or buffers.

    Returns:
        Their names; empty below three checkpoints, where that says nothing.
    """
    if len(portraits) < 3:
        return set()
    seen: dict[str, set[str]] = {}
    for portrait in portraits:
        for name, tensor in portrait.tensors.items():
            seen.setdefault(name, set()).add(tensor.digest)
    return {name for name, digests in seen.items() if len(digests) == 1}


def moving(portrait: Portrait, still: set[str]) -> dict[str, str]:
    """Take the tensors that training moves.

    Returns:
        Name -> digest of the finite floating-point tensors that are not constant over the run.
    """
    return {
        name: tensor.digest
        for name, tensor in portrait.tensors.items()
        if tensor.floating and tensor.size and not tensor.nonfinite and name not in still
    }


def find_duplicates(series: Series) -> tuple[Duplicates, ...]:
    """Find checkpoints whose moving tensors are all the same.

    A rate of 0 over the whole way between two neighbours leaves the weights as they are, so those are none.

    Returns:
        The groups, each with at least two steps.
    """
    portraits = series.portraits or ()
    still = constant(portraits)
    groups: dict[tuple[tuple[str, str], ...], list[Portrait]] = {}
    for portrait in portraits:
        weights = moving(portrait, still)
        if weights:
            groups.setdefault(tuple(sorted(weights.items())), []).append(portrait)
    found = []
    for group in groups.values():
        steps = tuple(portrait.step for portrait in group)
        if len(group) > 1 and not stood_still(series, steps):
            found.append(_owned(series, group))
    return tuple(found)


def stood_still(series: Series, steps: tuple[int, ...]) -> bool:
    """Tell whether the log says a rate of 0 for the whole way between some steps.

    Returns:
        False where it does not say.
    """
    log = series.run.log
    if log is None:
        return False
    import polars as pl

    between = log.rows.filter((pl.col("step") > steps[0]) & (pl.col("step") <= steps[-1]))
    rates = between["learning_rate"].drop_nulls()
    return rates.len() > 0 and bool((rates == 0).all())


def _owned(series: Series, group: Sequence[Portrait]) -> Duplicates:
    steps = tuple(portrait.step for portrait in group)
    counted = {
        portrait.step for portrait in group if portrait.optimizer and portrait.optimizer.step == portrait.step
    }
    others = [
        portrait.step for portrait in group if portrait.optimizer and portrait.optimizer.step != portrait.step
    ]
    if len(counted) == 1 and others:
        return Duplicates(steps, counted.pop(), "its optimizer counts that step")
    detours = _detours(series, steps)
    ranked = sorted(detours, key=lambda step: detours[step])
    if len(ranked) > 1 and detours[ranked[1]] > _CLEARLY * detours[ranked[0]]:
        return Duplicates(steps, ranked[0], "they lie on the way between its neighbours")
    return Duplicates(steps)


def _detours(series: Series, steps: tuple[int, ...]) -> dict[int, float]:
    # How much longer the way of the others gets where the weights are put in at each place.
    import numpy as np

    others = [one for one in series.portraits or () if one.step not in steps]
    if len(others) < 3:
        return {}
    member = next(one for one in series.portraits or () if one.step == steps[0])
    points = vectors([*others, member])
    if points is None:
        return {}
    known = [one.step for one in others]
    away = np.linalg.norm(points[:-1] - points[-1], axis=1)
    detours = {}
    for step in steps:
        after = next((place for place, one in enumerate(known) if one > step), len(known))
        ends = [place for place in (after - 1, after) if 0 <= place < len(known)]
        whole = float(np.linalg.norm(points[ends[0]] - points[ends[-1]]))
        detours[step] = float(away[ends].sum()) - whole
    return detours


def vectors(portraits: Sequence[Portrait], names: Sequence[str] | None = None) -> NDArray[np.float64] | None:
    """Put the samples of the tensors that all checkpoints share side by side, so that distances are those of all.

    Args:
        portraits: the checkpoints.
        names: only these tensors, None for all.

    Returns:
        One row a checkpoint; None where they share no finite floating-point tensor.
    """
    import numpy as np

    first = portraits[0].tensors
    shared = [
        name
        for name, tensor in first.items()
        if tensor.floating
        and tensor.size
        and (names is None or name in names)
        and all(
            (other := portrait.tensors.get(name)) is not None
            and other.shape == tensor.shape
            and not other.nonfinite
            for portrait in portraits
        )
    ]
    if not shared:
        return None
    scale = {name: (first[name].size / len(first[name].sample)) ** 0.5 for name in shared}
    return np.stack([
        np.concatenate([portrait.tensors[name].sample.astype(np.float64) * scale[name] for name in shared])
        for portrait in portraits
    ])


def shares(portraits: Sequence[Portrait], still: set[str]) -> Mapping[tuple[int, int], tuple[str, ...]]:
    """Find single tensors that are the same in two steps though they moved before or after.

    Returns:
        (earlier, later step) -> names of matrices and longer vectors that are the same there.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for place, portrait in enumerate(portraits):
        for name, digest in moving(portrait, still).items():
            if portrait.tensors[name].size >= 64:
                places.setdefault((name, digest), []).append(place)
    found: dict[tuple[int, int], list[str]] = {}
    for (name, _), where in places.items():
        # A tensor that stands still for three checkpoints and more is frozen for a while, not copied.
        if len(where) == 1 or (len(where) > 2 and where[-1] - where[0] == len(where) - 1):
            continue
        found.setdefault((portraits[where[0]].step, portraits[where[1]].step), []).append(name)
    return {pair: tuple(names) for pair, names in found.items()}
