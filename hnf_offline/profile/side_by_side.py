"""Flat vectors of several checkpoints side by side, and the rows that are made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.linalg.vectors import Vectors
from hnf_offline.profile.forward import fetched
from hnf_offline.profile.snapshot import TOGETHER, Alike, Snapshot
from hnf_offline.quantities.registry import Quantity, computable
from hnf_offline.run.model.layers import Layer
from hnf_offline.table import Block, Rows

TIER = "weights"
#: Paths, kinds and depths of layers.
Places = tuple[list[str], list[str], list[int]]
#: The whole model.
MODEL: Places = [""], ["model"], [-1]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint's values go.

    Attributes:
        rows: they are added to these.
        batch: what the column `batch` says.
    """

    rows: Rows
    batch: str = ""


class Held:
    """Snapshots, each of them once, in the order in which they are first named."""

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        """Hold snapshots.

        Args:
            snapshots: some of them several times. Where those of successive checkpoints are named in their order, what
                a checkpoint and the one before it are measured on is not copied.
        """
        self.snapshots = list({id(one): one for one in snapshots}.values())
        self._places = {id(one): at for at, one in enumerate(self.snapshots)}

    def at(self, snapshots: Iterable[Snapshot]) -> slice | list[int]:
        """Find some of them.

        Returns:
            Their places.
        """
        return successive([self._places[id(one)] for one in snapshots])


def successive(places: Sequence[int]) -> slice | list[int]:
    """Give places as a slice where they follow one another, which copies nothing.

    Returns:
        The places.
    """
    if not places or list(places) != list(range(places[0], places[-1] + 1)):
        return list(places)
    return slice(places[0], places[-1] + 1)


class Flats:
    """Flat vectors of several checkpoints: side by side in one copy where they are small, else as they are."""

    def __init__(self, flats: Sequence[Tensor], device: torch.device) -> None:
        """Hold vectors.

        Args:
            flats: [parameters] each, laid out alike.
            device: where they are needed.
        """
        small = len(flats) > 1 and len(flats) * flats[0].numel() <= 4 * TOGETHER
        self._flats = [torch.stack(list(flats)).to(device)] if small else [one.unsqueeze(0) for one in flats]
        self._device = device

    def of(self, group: Alike, some: slice | list[int]) -> Tensor:
        """Give some layers of a group.

        Returns:
            [checkpoints, layers, size], of 32 bits an entry at least: a mean of bfloat16 numbers would be one.
        """
        pieces = [group.of(flat)[:, some].to(self._device) for flat in self._flats]
        together = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return together if together.dtype.itemsize >= 4 else together.float()

    def some(self, places: slice | list[int]) -> Tensor:
        """Give some checkpoints.

        Returns:
            [checkpoints, parameters], as they are: of large ones still where they were.
        """
        if len(self._flats) == 1:
            return self._flats[0][places]
        chosen = self._flats[places] if isinstance(places, slice) else [self._flats[at] for at in places]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen)


class Collected:
    """Values of many layers at several checkpoints, brought from the device in one transfer."""

    def __init__(self) -> None:
        """Collect nothing yet."""
        self._seen: list[tuple[Sequence[Target | None], Places, Quantity, Tensor]] = []

    def add(
        self,
        targets: Sequence[Target | None],
        layers: Sequence[Layer],
        offered: Mapping[str, Tensor | Vectors],
        needing: str = "",
    ) -> None:
        """Evaluate every quantity of the tier whose inputs are offered for some layers, and that needs one of them.

        Args:
            targets: one a checkpoint; None for one that nobody asked for.
            layers: that the inputs are of.
            offered: [checkpoints, layers, ...] by name.
            needing: an input that the quantities must have.
        """
        places = places_of(layers)
        for entry in computable(frozenset(offered), TIER):
            if layers and (not needing or needing in entry.inputs):
                value = entry.function(*(offered[name] for name in entry.inputs))
                self._seen.append((targets, places, entry, value))

    def tell(self) -> None:
        """Add a row a value; none where 0 was divided by 0, as for a layer that did not move."""
        values = fetched([value for *_, value in self._seen])
        for (targets, places, entry, _), value in zip(self._seen, values, strict=True):
            if value.ndim == 2:
                tell(targets, Block(places, entry.name, value.numpy()))
                continue
            worst, heads = value.max(dim=-1) if entry.worst_head == "max" else value.min(dim=-1)
            # A head that is not finite leaves its layer without a value.
            worst = worst.where(value.isfinite().all(dim=-1), math.nan)
            tell(targets, Block(places, entry.name, worst.numpy()))
            named = heads.double().where(worst.isfinite(), math.nan)
            tell(targets, Block(places, f"{entry.name}_head", named.numpy()))


def places_of(layers: Sequence[Layer]) -> Places:
    """Say where layers are.

    Returns:
        Their paths, kinds and depths.
    """
    return [one.path for one in layers], [one.kind for one in layers], [one.depth for one in layers]


def tell(targets: Sequence[Target | None], block: Block) -> None:
    """Add a row a value that is finite.

    Args:
        targets: one a checkpoint of the block; None for one that nobody asked for.
        block: the values.
    """
    for at, target in enumerate(targets):
        if target is not None:
            target.rows.add(block, at, target.batch)
