"""What is wrong with single tensors of an initial checkpoint: empty, copied, structured, or too large. Torch-free."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hnf_offline.check.initial import Initial, duplicates
from hnf_offline.check.series import some

#: Largest singular value over the edge of independent draws above which a matrix is no such draw; narrow ones spread.
STRUCTURED, NARROW = 1.2, 16
#: Nats of the first loss above that of a guess. Wide Llamas begin 2 above it.
TOO_HIGH = 3.0
#: What to do about first logits that are too large.
SMALLER_HEAD = (
    "draw the head, or the embedding it is tied to, smaller (0.02, or 1 / sqrt(width)), and start again"
)
#: What to do about one layer of several that are alike.
LIKE_KIN = "initialise it like its kin, and start again"


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing to say.

    Attributes:
        severity: "warning" or "info".
        evidence: the numbers that show it.
        remedy: what to do.
    """

    severity: str
    evidence: str
    remedy: str


def is_wide(one: Initial) -> bool:
    """Say whether a matrix is wide enough for its largest singular value to be told from that of a draw.

    Returns:
        False for tables of embeddings and positions too.
    """
    place = one.place
    if place is None or one.constant or one.positions:
        return False
    return min(place.fan_in, place.fan_out) >= NARROW and place.role != "embedding"


def empty(tensors: Sequence[Initial]) -> Iterator[Remark]:
    """Matrices whose elements are all equal.

    Yields:
        A remark for each like of them; all of a kind that write nothing may be meant.
    """
    matrices = [one for one in tensors if one.place is not None and not one.positions]
    groups: dict[str, list[Initial]] = defaultdict(list)
    for one in matrices:
        groups[one.kin].append(one)
    for kin, group in groups.items():
        still = [one for one in group if one.constant]
        if not still:
            continue
        name = still[0].name if len(still) < len(group) or len(group) == 1 else kin
        value = "zeros" if still[0].largest == 0 else f"one number, {still[0].mean:.3g}, everywhere"
        on_purpose = (
            len(still) == len(group)
            and still[0].largest == 0
            and still[0].place is not None
            and still[0].place.role in ("residual", "head")
        )
        if on_purpose:
            evidence = f"{kin} holds only zeros in {some(len(group), 'block')}: its branch, or the head, begins silent"
            yield Remark(
                "info", evidence, "nothing where that is meant (zero-initialised branches, muP's readout)"
            )
            continue
        others = f"; its {len(group) - len(still)} kin do not" if len(still) < len(group) else ""
        evidence = f"{name} holds {value}{others}: its units are all alike, and stay so"
        yield Remark("warning", evidence, LIKE_KIN if others else "draw it at random, and start again")


def copied(tensors: Sequence[Initial]) -> Iterator[Remark]:
    """Matrices that hold the same draw.

    Yields:
        At most one remark.
    """
    groups = duplicates(tensors)
    if groups:
        evidence = f"{groups[0][0]} and {groups[0][1]} hold the same draw bit for bit"
        others = sum(len(names) for names in groups) - 2
        evidence += (
            f", and so do {some(others, 'matrix', 'matrices')} more among themselves" if others else ""
        )
        yield Remark(
            "warning", evidence, "nothing where layers were copied on purpose; else draw each by itself"
        )


def structured(drawn: Sequence[Initial]) -> Iterator[Remark]:
    """Matrices with a singular value beyond the edge of independent draws.

    Yields:
        At most one remark.
    """
    standing = [one for one in drawn if is_wide(one) and one.edge > STRUCTURED]
    if standing:
        worst = max(standing, key=lambda one: one.edge)
        evidence = (
            f"the largest singular value of {worst.name} is {worst.edge:.3g} times the edge of independent draws, "
            f"deviation (sqrt(rows) + sqrt(columns)); so in {some(len(standing), 'matrix', 'matrices')}"
        )
        yield Remark(
            "info", evidence, "look whether it was trained or loaded from elsewhere, unlike the others"
        )


def vectors(tensors: Sequence[Initial], drift: float) -> Iterator[Remark]:
    """Gains of norms that are not 1, biases that are neither 0 nor PyTorch's.

    Yields:
        At most one remark on each.
    """
    fan_in = {one.name.removesuffix("weight"): one.place.fan_in for one in tensors if one.place is not None}
    gains = [one for one in tensors if one.kind == "gain" and one.size > 1]
    wrong = [one for one in gains if not (abs(one.mean - 1) <= drift + 1e-3 or abs(one.mean) <= drift + 1e-3)]
    moved = [one for one in gains if not one.constant and one not in wrong and not drift]
    for said, found in (("is not 1 (nor 0)", wrong), ("differs from unit to unit", moved)):
        if found:
            evidence = f"the gain of {some(len(found), 'norm')} {said}, such as {found[0].name} with mean "
            evidence += f"{found[0].mean:.3g}"
            yield Remark(
                "warning" if found is wrong else "info", evidence, "begin norms with gain 1 and shift 0"
            )
    large = []
    for one in tensors:
        if one.kind == "bias" and "dt_" not in one.name:  # Mamba keeps its first time steps there
            inputs = fan_in.get(one.name.removesuffix("bias"))
            allowed = 0.0 if inputs is None else 1.01 / math.sqrt(inputs)  # PyTorch's nn.Linear
            if one.largest > allowed + drift + 1e-6:
                large.append(one)
    if large:
        evidence = f"{some(len(large), 'bias', 'biases')} are neither 0 nor within 1 / sqrt(fan in), such as "
        evidence += f"{large[0].name} (up to {large[0].largest:.3g})"
        yield Remark("info", evidence, "nothing where that is meant; else begin biases with 0")


def wide_head(tensors: Sequence[Initial]) -> str:
    """Say where the weights alone let the first logits spread far: sqrt(width) times the deviation of the head.

    That holds for a normalised stream and a model that does not scale its logits down, as T5 does.

    Returns:
        A clause that names the head, "" where it is small, or nothing is normalised.
    """
    matrices = [one for one in tensors if one.place is not None and not one.constant]
    heads = [one for one in matrices if one.place is not None and one.place.role == "head"]
    tables = [
        one
        for one in matrices
        if one.place is not None and one.place.role == "embedding" and not one.positions
    ]
    tied = not heads or any(one.digest == heads[0].digest for one in tables)
    one = next(iter(heads or tables), None)
    if one is None or one.place is None or not any(each.kind == "gain" for each in tensors):
        return ""
    spread = one.deviation * math.sqrt(one.place.fan_in)
    if 0.5 * spread**2 <= TOO_HIGH:
        return ""
    ties = (
        " and is tied to the embedding" if heads and tied else "" if heads else ", and the head is tied to it"
    )
    told = f"{one.name} has standard deviation {one.deviation:.3g}{ties}"
    return f"{told}, which spreads the first logits by {spread:.3g}"
