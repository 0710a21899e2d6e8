"""Checkpoints read one ahead: while one is measured the next is read, and page-locked for a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hnf_offline.errors import UserError
from hnf_offline.profile.memory import free_bytes
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.model.placing import can_be_pinned, pinned
from hnf_offline.run.optimizer import RawOptimizer
from hnf_offline.run.records import Checkpoint

#: Share of the host's free memory that one checkpoint may lock; two of them are held at a time.
PINNED_SHARE = 0.25
_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        weights: by name, as saved.
        optimizer: its optimizer state, None where there is none or it is damaged.
        damage: what is wrong with the optimizer state.
    """

    weights: dict[str, Tensor]
    optimizer: RawOptimizer | None
    damage: UserError | None = None


def read_ahead(
    checkpoints: Sequence[Checkpoint], device: torch.device
) -> Iterator[tuple[Checkpoint, Loaded | UserError]]:
    """Read one checkpoint ahead of the one in use, and hold no more than those two.

    Args:
        checkpoints: in the order in which they are wanted.
        device: where they will be measured.

    Yields:
        Every checkpoint, with what is in it or why it cannot be read.
    """
    if not checkpoints:
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(load, checkpoints[0], device)
        for position, checkpoint in enumerate(checkpoints):
            loaded = ahead.result()
            if position + 1 < len(checkpoints):
                ahead = reader.submit(load, checkpoints[position + 1], device)
            else:
                del ahead  # or it would hold the last one
            yield checkpoint, loaded
            del loaded


def load(checkpoint: Checkpoint, device: torch.device) -> Loaded | UserError:
    """Read a checkpoint; an optimizer state that was cut off while it was written does not spoil the weights.

    Args:
        checkpoint: its files.
        device: where it will be measured; for a CUDA device it is read into page-locked memory.

    Returns:
        What is in it, or why its weights cannot be read.
    """
    try:
        weights = load_weights(checkpoint)
    except UserError as error:
        return error
    try:
        loaded = Loaded(weights, load_optimizer(checkpoint))
    except UserError as error:
        loaded = Loaded(weights, None, error)
    return _page_locked(loaded, device)


def _page_locked(loaded: Loaded, device: torch.device) -> Loaded:
    optimizer = loaded.optimizer
    moments = [] if optimizer is None else [_tensors(state) for state in optimizer.state.values()]
    everything = [*loaded.weights.values(), *(one for state in moments for one in state.values())]
    if not can_be_pinned(everything, device, int(PINNED_SHARE * free_bytes(_HOST))):
        return loaded
    try:
        if optimizer is not None:
            state = {key: {**own, **pinned(_tensors(own))} for key, own in optimizer.state.items()}
            optimizer = replace(optimizer, state=state)
        return replace(loaded, weights=pinned(loaded.weights), optimizer=optimizer)
    except RuntimeError:
        return loaded  # the system locks no more memory; the copy is slower, and that is all


def _tensors(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
