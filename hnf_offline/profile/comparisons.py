"""What a checkpoint's weights are measured against: nothing, the block before, the checkpoints before, the first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hnf_offline.linalg.vectors import Vectors, mean
from hnf_offline.profile.side_by_side import Collected, Flats, Held, Target, successive
from hnf_offline.profile.snapshot import Alike, Snapshot, alike, same_shapes
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Rows

#: A part of a path that is a number: that of a block (not that of `norm1`).
_BLOCK_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, slots=True)
class Occasion:
    """A checkpoint, and what it is measured against.

    Attributes:
        now: the checkpoint.
        earlier: those before it, the last one first, at most two; finite, and of its shapes.
        first: the first one of the run, finite, and of its shapes; None where there is none, or it is `now`.
    """

    now: Snapshot
    earlier: tuple[Snapshot, ...] = ()
    first: Snapshot | None = None

    @property
    def moved(self) -> frozenset[str]:
        """Paths of the layers that have a first moment now and had one before."""
        return self.now.moved & self.earlier[0].moved if self.earlier else frozenset()

    def looks_like(self, other: Occasion) -> bool:
        """Tell whether the same can be measured of both."""
        return (
            len(self.earlier) == len(other.earlier)
            and (self.first is None) == (other.first is None)
            and same_shapes(self.now, other.now)
        )


def occasion(now: Snapshot, earlier: Sequence[Snapshot] = (), first: Snapshot | None = None) -> Occasion:
    """Leave out what a checkpoint cannot be measured against.

    Args:
        now: the checkpoint.
        earlier: those before it, the last one first.
        first: the first one of the run, None where that is `now`.

    Returns:
        The occasion.
    """
    usable = [one for one in earlier if one.finite and same_shapes(one, now)]
    start = first if first is not None and first.finite and same_shapes(first, now) else None
    return Occasion(now, tuple(usable[:2]), start)


def _since(rows: Sequence[Rows], others: Sequence[Snapshot]) -> list[Target]:
    return [Target(own, f"since step {other.step}") for own, other in zip(rows, others, strict=True)]


class Comparison(Protocol):
    """What is seen of checkpoints' weights, some layers after the others."""

    def see(self, seen: Collected, stretch: Stretch) -> None:
        """Evaluate what can be evaluated of some layers."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Layers of one size that are measured together.

    Attributes:
        group: they belong to it.
        some: their places in it.
        held: their parameters in every snapshot, [snapshots, layers, size].
        now: those in the checkpoints that are measured, [checkpoints, layers, size].
    """

    group: Alike
    some: slice
    held: Vectors
    now: Vectors

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in forward order."""
        return self.group.layers[self.some]


@dataclass(frozen=True, slots=True)
class Alone:
    """Nothing but the weights themselves: their distribution."""

    targets: Sequence[Target]

    def see(self, seen: Collected, stretch: Stretch) -> None:
        """Evaluate what can be evaluated of some layers."""
        weight = stretch.now
        centred = Vectors(weight.values - mean(weight).unsqueeze(-1))
        ordered = _ordered(weight.values)
        offered: dict[str, Tensor | Vectors]
        offered = {"weight": weight, "centred_weight": centred, "sorted_weight": ordered}
        seen.add(self.targets, stretch.layers, offered)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The same layer of the block before.

    Attributes:
        targets: one a checkpoint.
        flats: the weights of all snapshots.
        now: places of the checkpoints among them.
        like: path of a layer -> place in its group of the one before.
    """

    targets: Sequence[Target]
    flats: Flats
    now: slice | list[int]
    like: Mapping[str, int]

    @classmethod
    def of(
        cls, layers: Sequence[Layer], targets: Sequence[Target], flats: Flats, now: slice | list[int]
    ) -> Neighbours:
        """Find the layers that have one.

        Returns:
            What they are compared with.
        """
        places = {layer.path: at for group in alike(layers) for at, layer in enumerate(group.layers)}
        like = {path: places[other.path] for path, other in neighbours_of(layers).items()}
        return cls(targets, flats, now, like)

    def see(self, seen: Collected, stretch: Stretch) -> None:
        """Evaluate what can be evaluated of some layers."""
        own = [at for at, layer in enumerate(stretch.layers) if layer.path in self.like]
        if own:
            layers = [stretch.layers[at] for at in own]
            places = successive([self.like[layer.path] for layer in layers])
            neighbour = Vectors(self.flats.of(stretch.group, places)[self.now])
            offered = {"weight": stretch.now[:, successive(own)], "neighbour": neighbour}
            seen.add(self.targets, layers, offered, needing="neighbour")


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes between checkpoints that follow one another, each taken once; places are slices where they can be.

    Attributes:
        targets: one a checkpoint.
        later: places of the snapshots that the changes lead to.
        before: places of those that they lead from.
        change: places among the changes of the one into each checkpoint.
        earlier: places among the snapshots of what each checkpoint changed from.
        change_before: places among the changes of the one before; None where there is none.
    """

    targets: Sequence[Target]
    later: slice | list[int]
    before: slice | list[int]
    change: slice | list[int]
    earlier: slice | list[int]
    change_before: slice | list[int] | None

    @classmethod
    def of(cls, occasions: Sequence[Occasion], rows: Sequence[Rows], held: Held) -> Changes | None:
        """Find the changes.

        Returns:
            What is compared; None of first checkpoints.
        """
        if not occasions[0].earlier:
            return None
        earlier = [one.earlier[0] for one in occasions]
        pairs = [list(pairwise((one.now, *one.earlier))) for one in occasions]
        intervals = {(id(later), id(before)): (later, before) for own in pairs for later, before in own[::-1]}
        place = {interval: at for at, interval in enumerate(intervals)}
        last, *others = (
            [place[id(one), id(other)] for one, other in own] for own in zip(*pairs, strict=True)
        )
        return cls(
            _since(rows, earlier),
            held.at(later for later, _ in intervals.values()),
            held.at(before for _, before in intervals.values()),
            successive(last),
            held.at(earlier),
            successive(others[0]) if others else None,
        )

    def see(self, seen: Collected, stretch: Stretch) -> None:
        """Evaluate what can be evaluated of some layers."""
        held = stretch.held.values
        changes = Vectors(held[self.later] - held[self.before])
        offered = {"change": changes[self.change], "earlier": stretch.held[self.earlier]}
        if self.change_before is not None:
            offered["change_before"] = changes[self.change_before]
        seen.add(self.targets, stretch.layers, offered)


@dataclass(frozen=True, slots=True)
class Starts:
    """The first checkpoint of the run.

    Attributes:
        targets: one a checkpoint.
        flats: the weights of the first checkpoints, mostly of one.
        places: of each checkpoint's among them; of the only one where it is that of all.
    """

    targets: Sequence[Target]
    flats: Flats
    places: slice | list[int]

    @classmethod
    def of(cls, occasions: Sequence[Occasion], rows: Sequence[Rows], device: torch.device) -> Starts | None:
        """Find the first checkpoints.

        Returns:
            What is compared; None where there is none.
        """
        starts = [one.first for one in occasions if one.first is not None]
        if not starts:
            return None
        held = Held(starts)
        places = slice(0, 1) if len(held.snapshots) == 1 else held.at(starts)
        flats = Flats([one.weights for one in held.snapshots], device)
        return cls(_since(rows, starts), flats, places)

    def see(self, seen: Collected, stretch: Stretch) -> None:
        """Evaluate what can be evaluated of some layers."""
        first = Vectors(self.flats.of(stretch.group, stretch.some))[self.places]
        seen.add(self.targets, stretch.layers, {"weight": stretch.now, "first": first}, needing="first")


@dataclass(frozen=True, slots=True)
class Moments:
    """The optimizer's first moments at checkpoints that have them of the same layers, each behind the one before it.

    Attributes:
        targets: one for each two moments that follow one another; None where they are not compared.
        flats: the moments.
        moved: paths of the layers that have some.
    """

    targets: Sequence[Target | None]
    flats: Flats
    moved: frozenset[str]

    @classmethod
    def of(cls, some: Sequence[tuple[Occasion, Rows]], device: torch.device) -> Moments:
        """Find the moments.

        Args:
            some: checkpoints that have moments of the same layers, and where their values go.
            device: where they are compared.

        Returns:
            What is compared.
        """
        occasions, rows = zip(*some, strict=True)
        earlier = [one.earlier[0] for one in occasions]
        chain: list[Snapshot] = []
        targets: list[Target | None] = []
        for one, before, target in zip(occasions, earlier, _since(rows, earlier), strict=True):
            if not chain or chain[-1] is not before:
                targets += [None] if chain else []
                chain.append(before)
            targets.append(target)
            chain.append(one.now)
        flats = Flats([one.moments for one in chain if one.moments is not None], device)
        return cls(targets, flats, occasions[0].moved)

    def see(self, seen: Collected, stretch: Stretch) -> None:
        """Evaluate what can be evaluated of some layers."""
        held = [at for at, layer in enumerate(stretch.layers) if layer.path in self.moved]
        if held:
            moments = Vectors(self.flats.of(stretch.group, stretch.some)[:, successive(held)])
            offered = {"moment": moments[1:], "moment_before": moments[:-1]}
            seen.add(self.targets, [stretch.layers[at] for at in held], offered)


def neighbours_of(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Find each layer's like in the block before: the same path but for a number, and the same shapes.

    Returns:
        Path -> layer.
    """
    last: dict[tuple[object, ...], Layer] = {}
    found: dict[str, Layer] = {}
    for layer in layers:
        like = _BLOCK_NUMBER.sub("#", layer.path), tuple((part.shape, part.size) for part in layer.parts)
        if like in last:
            found[layer.path] = last[like]
        last[like] = layer
    return found


def _ordered(weight: Tensor) -> Tensor:
    """In ascending order; with NumPy on the CPU, which takes a tenth of torch's time."""
    if weight.device.type != "cpu":
        return weight.sort(dim=-1).values
    return torch.from_numpy(np.sort(weight.numpy(), axis=-1))
