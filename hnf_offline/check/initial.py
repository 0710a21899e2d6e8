"""What is known of one tensor of an initial checkpoint. Torch-free."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

#: A part of a name that is a number: that of a block.
BLOCK = re.compile(r"(?<![^.])\d+(?![^.])")
_POSITIONS = re.compile(r"wpe|pos|token_type|segment|relative")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight matrix stands.

    Attributes:
        role: "embedding", "head", "residual" (writes into the residual stream), or "inner".
        fan_in: what each output sums over.
        fan_out: outputs.
        block: number of its block, None outside of them.
        blocks: number of blocks.
        fused: equal parts stacked along the outputs: 3 for query, key and value in one matrix.
    """

    role: str
    fan_in: int
    fan_out: int
    block: int | None
    blocks: int
    fused: int = 1


@dataclass(frozen=True, slots=True)
class Initial:
    """One tensor of an initial checkpoint.

    Attributes:
        name: without the prefixes of wrappers.
        size: its elements.
        deviation: root of their mean square about 0: what an initialisation sets.
        mean: their mean.
        excess_kurtosis: 0 for a normal draw, -1.2 for a uniform one; NaN where all are equal.
        largest: largest magnitude.
        constant: whether all elements are equal.
        digest: hash of all bytes.
        place: where it stands as a matrix, None for anything but matrices.
        edge: largest singular value over deviation (sqrt(rows) + sqrt(columns)), the edge of independent draws
            (Bai & Yin 1993; Vershynin 2018, theorem 4.4.5); NaN for anything but matrices.
        kind: "matrix", "gain" of a norm, "bias", or "other".
    """

    name: str
    size: int
    deviation: float
    mean: float
    excess_kurtosis: float
    largest: float
    constant: bool
    digest: str
    place: Place | None
    edge: float
    kind: str

    @property
    def error(self) -> float:
        """Relative standard error of the deviation of so many independent draws."""
        tails = self.excess_kurtosis if math.isfinite(self.excess_kurtosis) else 0.0
        return math.sqrt(max(tails + 2, 0.2) / (4 * self.size))

    @property
    def positions(self) -> bool:
        """Whether it is a table of positions or segments, which may be anything."""
        return bool(_POSITIONS.search(self.name))

    @property
    def kin(self) -> str:
        """Its name with the number of the block left out: the same for the like of it in every block."""
        return BLOCK.sub("#", self.name)


def duplicates(tensors: Sequence[Initial]) -> list[tuple[str, ...]]:
    """Find matrices that hold the same draw bit for bit; constants, and a table that the head is tied to, are none.

    Returns:
        Groups of names, in order.
    """
    alike: dict[str, list[Initial]] = defaultdict(list)
    for one in tensors:
        if one.place is not None and not one.constant:
            alike[one.digest].append(one)
    return [
        tuple(one.name for one in group)
        for group in alike.values()
        if len(group) > 1 and not _tied([one.place for one in group if one.place is not None])
    ]


def _tied(places: Sequence[Place]) -> bool:
    return any(one.role == "embedding" for one in places) and all(one.block is None for one in places)
