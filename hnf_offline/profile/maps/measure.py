"""The maps of all layers at one checkpoint: what one replay of a few sequences shows of their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from hnf_offline.linalg.condition import LAYER_NORM_NULLITY, RMS_NORM_NULLITY
from hnf_offline.profile.exhaustion import is_out_of_memory
from hnf_offline.profile.forward import depth_of_value
from hnf_offline.profile.maps.capture import Call, Captured, capture, differentiable
from hnf_offline.profile.maps.items import (
    NO_DERIVATIVE,
    NO_MEMORY,
    NO_MODULE,
    LeftOutError,
    sequence_items,
    token_items,
)
from hnf_offline.profile.maps.observe import (
    observe_curved,
    observe_sequences,
    observe_softmax,
    observe_tokens,
)
from hnf_offline.profile.maps.rows import MapObservations, Place, rows_of
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.layers import centres, depth_within
from hnf_offline.table import Row

#: Sequences whose maps are looked at, and how much of each.
SEQUENCES, LENGTH = 2, 128


def map_rows(subject: Subject, settings: ProfileSettings) -> list[Row]:
    """Measure every layer's map: norms, MLPs, attention, blocks, and every softmax over keys.

    Two sequences of at most 128 tokens are replayed, or two images; maps of single tokens are looked at on 16 of
    these, second derivatives of attention and blocks on the first sequence alone. What cannot be measured is a row of
    `map.left_out`.

    Args:
        subject: module and rows.
        settings: for the seed.

    Returns:
        Rows of the `map` family.

    Raises:
        Exception: if memory runs out on more than one row; the caller tries again with fewer.
    """
    batch = subject.batches[0]
    tokens, labels = few(batch.tokens, batch.labels)
    several = "rows" if tokens.is_floating_point() else f"x {tokens.shape[1]} tokens"
    name = f"{len(tokens)} {several} of {subject.name}"
    with differentiable(subject.module):
        captured = capture(subject.module, subject.layers, tokens, labels)
        first = capture(subject.module, subject.layers, tokens[:1], None if labels is None else labels[:1])
        alone = {call.path: call for call in first.calls}
        rows: list[Row] = []
        for call in captured.calls:
            depth = depth_within(subject.layers, call.path)
            place = Place(subject.step, call.path, call.kind, depth, name)
            try:
                own = _observed(place, call, alone.get(call.path), len(tokens), settings.seed)
            except LeftOutError as error:
                rows += _left_out(place, error.reason)
            except Exception as error:  # somebody else's module can fail in any way under second derivatives
                exhausted = is_out_of_memory(error)
                if exhausted and len(tokens) > 1:
                    raise
                rows += _left_out(place, NO_MEMORY if exhausted else NO_DERIVATIVE)
            else:
                rows += own
    return rows + _softmax_rows(subject, captured, name) + _absent_rows(subject, captured, name)


def few(tokens: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cut rows to a few short sequences; images stay whole.

    Returns:
        At most `SEQUENCES` rows of at most `LENGTH` tokens, and their labels.
    """
    short = tokens[:SEQUENCES] if tokens.is_floating_point() else tokens[:SEQUENCES, :LENGTH]
    if labels is None:
        return short, None
    own = labels[:SEQUENCES]
    if own.ndim == 2:
        own = own[:, : short.shape[1] + labels.shape[1] - tokens.shape[1]]
    return short, own


def _left_out(place: Place, reason: int) -> list[Row]:
    return rows_of(place, MapObservations({"reason": torch.tensor([float(reason)])}))


def _observed(place: Place, call: Call, alone: Call | None, sequences: int, seed: int) -> list[Row]:
    if call.kind in {"norm", "mlp"}:
        return rows_of(place, observe_tokens(token_items(call), _nullity(call), seed))
    seen, vectors = observe_sequences(sequence_items(call, sequences), seed)
    rows = rows_of(place, seen)
    if alone is not None:
        curved = observe_curved(seen, sequence_items(alone, 1), vectors[:1], seed)
        rows += rows_of(place, curved, of="second_derivative_norms")
    return rows


def _nullity(call: Call) -> int:
    if call.kind != "norm":
        return 0
    return LAYER_NORM_NULLITY if centres(call.module) else RMS_NORM_NULLITY


def _softmax_rows(subject: Subject, captured: Captured, name: str) -> list[Row]:
    rows: list[Row] = []
    for owner, scores in captured.scores.items():
        seen = observe_softmax(scores)
        if seen is None:
            continue
        depth = depth_of_value(subject.layers, owner, depth_within(subject.layers, owner))
        place = Place(subject.step, f"{owner}.softmax".lstrip("."), "softmax", depth, name)
        rows += rows_of(place, seen)
    return rows


def _absent_rows(subject: Subject, captured: Captured, name: str) -> list[Row]:
    """Blocks without a module of their own for the MLP or the attention (torch's encoder layer, BERT)."""
    rows: list[Row] = []
    blocks = [call.path for call in captured.calls if call.kind == "block"]
    for kind in ("attention", "mlp") if captured.scores else ("mlp",):
        there = [call.path for call in captured.calls if call.kind == kind]
        for block in blocks:
            if not any(path.startswith(f"{block}.") for path in there):
                depth = depth_within(subject.layers, block)
                rows += _left_out(Place(subject.step, f"{block}.{kind}", kind, depth, name), NO_MODULE)
    return rows
