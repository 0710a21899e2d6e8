"""What is said of an initial checkpoint: the scheme of most matrices, those that stand out, and the first loss."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from hnf_offline.check.initial import Initial
from hnf_offline.check.initial_remarks import (
    LIKE_KIN,
    SMALLER_HEAD,
    STRUCTURED,
    TOO_HIGH,
    Remark,
    copied,
    empty,
    is_wide,
    structured,
    vectors,
)
from hnf_offline.check.initial_replay import FirstPass
from hnf_offline.check.initial_schemes import Scheme, schemes
from hnf_offline.check.series import some

#: A deviation fits a scheme within this part of it, or so many of its standard errors where those are wider.
FITS, ERRORS = 0.02, 4.0
#: A matrix is off from its kin where it differs by this part of theirs, and by so many standard errors.
OFF, OFF_ERRORS = 0.1, 6.0
#: Largest singular value of an orthogonal matrix over the edge of independent draws: up to here the two can be told
#: apart.
ORTHOGONAL = 0.9
#: Share of the matrices, or of the norms' gains, above which the whole was trained before.
TRAINED = 0.3
#: Share of the matrices that one scheme must explain before others count as strange to it.
MOST = 0.6
#: A first loss this part of that of a guess was not found by chance.
KNOWING = 0.8
#: Growth of the residual stream from the first to the last block, beside sqrt(blocks), and its fall.
GROWS, FALLS = 3.0, 0.1
_GPT2 = re.compile(r"^(?:gpt|gpt2|gpt_?2|gpt-2|nanogpt)$")


def already_trained(tensors: Sequence[Initial]) -> str:
    """Say why the weights are no fresh draw.

    Returns:
        A clause, "" where they may be one.
    """
    wide = [one for one in tensors if is_wide(one)]
    standing = sum(one.edge > STRUCTURED for one in wide)
    gains = [one for one in tensors if one.kind == "gain" and one.size > 1]
    moved = sum(not one.constant for one in gains)
    if wide and standing > TRAINED * len(wide):
        return (
            f"singular values stand out of the noise in {standing} of {some(len(wide), 'matrix', 'matrices')}"
        )
    if gains and moved > TRAINED * len(gains):
        return f"{moved} of {some(len(gains), 'norm')} have gains that differ from unit to unit"
    return ""


def judge(
    tensors: Sequence[Initial], settings: Mapping[str, Any], drift: float
) -> tuple[tuple[Remark, ...], str]:
    """Judge every tensor.

    Args:
        tensors: of the checkpoint.
        settings: the model's.
        drift: by how much training can have moved a weight already.

    Returns:
        What is off, and in some words what the initialisation looks like.
    """
    tables = {one.digest for one in tensors if one.place is not None and one.place.role == "embedding"}
    drawn = [
        one
        for one in tensors
        if one.place is not None
        and not (one.constant or one.positions)
        and (
            one.place.role == "embedding" or one.digest not in tables
        )  # a head that is tied is its embedding
    ]
    fitting = {one.name: _fitting(one, settings, drift) for one in drawn}
    chosen = _agreed(fitting)
    off = dict(_off_from_kin(drawn, drift))
    remarks = [
        *empty(tensors),
        *copied(tensors),
        *(Remark("warning", words, LIKE_KIN) for words in off.values()),
        *_strange(drawn, chosen, off),
        *structured(drawn),
        *vectors(tensors, drift),
        *_unscaled(drawn, chosen, settings),
    ]
    return tuple(remarks), _looks(drawn, chosen)


def of_the_replay(seen: FirstPass, head: str = "") -> tuple[tuple[Remark, ...], str]:
    """Judge what a forward pass shows.

    Args:
        seen: the forward pass.
        head: what `wide_head` says.

    Returns:
        What is off, and the pass in some words.
    """
    remarks: list[Remark] = []
    words = [f"first loss {seen.loss:.4g}"]
    if seen.chance is not None:
        words[0] += f", log({seen.classes}) = {seen.chance:.4g}"
        above = seen.loss - seen.chance
        if not above <= TOO_HIGH:  # a NaN is not
            why = head or "the first logits are too large"
            evidence = f"the first loss is {seen.loss:.4g}, that of a guess {seen.chance:.4g}: {why}"
            remarks.append(Remark("warning", evidence, SMALLER_HEAD))
        elif seen.loss < KNOWING * seen.chance:
            evidence = f"the first loss is {seen.loss:.4g}, below the {seen.chance:.4g} of a guess"
            remedy = (
                "look whether these weights were trained before, or whether labels can be seen by the model"
            )
            remarks.append(Remark("info", evidence, remedy))
    stream = [one for one in seen.stream if math.isfinite(one) and one > 0]
    if len(stream) >= 3 and len(stream) == len(seen.stream):
        growth = stream[-1] / stream[0]
        allowed = math.sqrt(len(stream))
        told = f"the residual stream goes from {stream[0]:.3g} to {stream[-1]:.3g} over {len(stream)} blocks"
        words.append(f"{told} ({growth:.3g}-fold)")
        if growth > GROWS * allowed:
            evidence = (
                f"{told}, {growth:.3g}-fold; branches of equal size give at most sqrt(blocks) = {allowed:.3g}"
            )
            remarks.append(Remark("warning", evidence, "scale residual projections by 1 / sqrt(2 blocks)"))
        elif growth < FALLS:
            evidence = f"{told}: what goes in hardly comes out, and gradients will vanish the same way"
            remarks.append(
                Remark("warning", evidence, "draw the blocks larger (He, LSUV), or normalise before each")
            )
    return tuple(remarks), "; ".join(words)


def _fitting(one: Initial, settings: Mapping[str, Any], drift: float) -> tuple[Scheme, ...]:
    assert one.place is not None
    inputs, outputs = one.place.fan_in, one.place.fan_out
    # All singular values alike: far below the edge of independent draws, where the shape lets the two differ.
    level = math.sqrt(max(inputs, outputs)) / (math.sqrt(inputs) + math.sqrt(outputs))
    if level < ORTHOGONAL and abs(one.edge / level - 1) <= FITS:
        return (Scheme("orthogonal", one.deviation),)
    room = max(FITS, ERRORS * one.error)
    fits = [
        scheme
        for scheme in schemes(one.place, settings)
        if abs(one.deviation - scheme.deviation) <= room * scheme.deviation + drift
    ]
    return tuple(sorted(fits, key=lambda scheme: abs(math.log(one.deviation / scheme.deviation))))


def _agreed(fitting: Mapping[str, tuple[Scheme, ...]]) -> dict[str, Scheme]:
    # Many schemes coincide at some width. Of those that fit a matrix the one whose name explains most others unscaled;
    # of its scalings the most frequent.
    plain = Counter(one.name for fits in fitting.values() for one in fits if not one.scaling)
    whole = Counter(str(one) for fits in fitting.values() for one in fits)
    return {
        tensor: max(fits, key=lambda one: (plain[one.name], whole[str(one)], -fits.index(one)))
        for tensor, fits in fitting.items()
        if fits
    }


def _looks(drawn: Sequence[Initial], chosen: Mapping[str, Scheme]) -> str:
    if not drawn:
        return "no matrix is drawn at random"
    counts = Counter(str(scheme) for scheme in chosen.values())
    named = [f"{name} in {count}" for name, count in counts.most_common(4)]
    others = len(drawn) - sum(count for _, count in counts.most_common(4))
    tails = median(one.excess_kurtosis for one in drawn if math.isfinite(one.excess_kurtosis))
    shape = "uniform" if tails < -1.0 else "normal" if abs(tails) < 0.3 else "neither normal nor uniform"
    told = ", ".join([*named, *([f"another deviation in {others}"] if others else [])])
    return f"{told} of {some(len(drawn), 'matrix', 'matrices')}, mostly {shape}"


def _off_from_kin(drawn: Sequence[Initial], drift: float) -> Iterator[tuple[str, str]]:
    groups: dict[tuple[str, int], list[Initial]] = defaultdict(list)
    for one in drawn:
        if one.place is not None and one.place.block is not None:
            groups[one.kin, one.size].append(one)
    for group in groups.values():
        if len(group) < 3:
            continue
        law = _law(group)
        level = median(one.deviation / law[one.name] for one in group)
        for one in group:
            expected = level * law[one.name]
            room = max(OFF, OFF_ERRORS * one.error) * expected + 2 * drift
            if abs(one.deviation - expected) > room:
                times = one.deviation / expected
                told = (
                    f"{one.name} has standard deviation {one.deviation:.3g}, {times:.2g} times that of its "
                )
                yield one.name, f"{told}{len(group) - 1} kin in other blocks ({expected:.3g})"


def _law(group: Sequence[Initial]) -> dict[str, float]:
    # Some initialisations shrink with depth: of "all alike" and 1 / sqrt(block) the law that most follow more closely.
    blocks = {one.name: one.place.block for one in group if one.place and one.place.block is not None}
    laws = [{name: (block + 1) ** power for name, block in blocks.items()} for power in (0.0, -0.5)]

    def spread(law: Mapping[str, float]) -> float:
        logs = [math.log(one.deviation / law[one.name]) for one in group]
        return median(abs(each - median(logs)) for each in logs)

    return min(laws, key=spread)


def _strange(
    drawn: Sequence[Initial], chosen: Mapping[str, Scheme], off: Mapping[str, str]
) -> Iterator[Remark]:
    # A matrix that no known scheme explains, where one explains most others.
    counts = Counter(scheme.name for scheme in chosen.values())
    if not counts:
        return
    name, most = counts.most_common(1)[0]
    if most < MOST * len(drawn):
        return
    strange: dict[str, list[Initial]] = defaultdict(list)
    for one in drawn:
        if one.name not in chosen and one.name not in off:
            strange[one.kin].append(one)
    for kin, alike in strange.items():
        named = kin if len(alike) > 1 else alike[0].name
        evidence = (
            f"{named} has standard deviation {alike[0].deviation:.3g}, which no known scheme gives; {name} explains "
            f"{most} of {some(len(drawn), 'matrix', 'matrices')}"
        )
        # Two blocks of which one follows the others: the other one does not.
        severity = "warning" if any(one.kin == kin and one.name in chosen for one in drawn) else "info"
        yield Remark(severity, evidence, "nothing where it is meant; else initialise it as the others are")


def _unscaled(
    drawn: Sequence[Initial], chosen: Mapping[str, Scheme], settings: Mapping[str, Any]
) -> Iterator[Remark]:
    kind = str(settings.get("model_type") or settings.get("kind") or "")
    residual = [one for one in drawn if one.place is not None and one.place.role == "residual"]
    if not residual or residual[0].place is None or residual[0].place.blocks < 2:
        return
    scaled = [one for one in residual if one.name in chosen and chosen[one.name].scaling]
    plain = [one for one in residual if one.name in chosen and not chosen[one.name].scaling]
    if scaled and plain and min(len(scaled), len(plain)) > 0:
        evidence = (
            f"{some(len(plain), 'residual projection')}, such as {plain[0].name}, are not scaled by depth, "
        )
        evidence += f"{len(scaled)} are, such as {scaled[0].name}"
        yield Remark("warning", evidence, "scale all of them by 1 / sqrt(2 blocks), or none")
    elif plain and not scaled and _GPT2.match(kind) and all(chosen[one.name].normal for one in plain):
        blocks = residual[0].place.blocks
        evidence = (
            f"residual projections are not scaled by 1 / sqrt(2 L) as GPT-2's are: {2 * blocks} branches of full size "
            f"add up to sqrt({2 * blocks}) = {math.sqrt(2 * blocks):.2g} times one"
        )
        yield Remark(
            "info", evidence, "harmless in shallow models; in deep ones scale them, or warm up longer"
        )
