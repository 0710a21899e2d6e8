"""What the black box keeps in memory: the batches and generator states of the last steps, and sparse full states."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError
from hnf_offline.record.optimizer import describe_optimizer
from hnf_offline.run.model.loss import IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one forward pass, on the CPU.

    Attributes:
        tokens: [rows, length], int32.
        labels: [rows, length] or [rows], int32; None where the labels are the tokens.
        attention_mask: [rows, length], uint8; None where there was none.
    """

    tokens: Tensor
    labels: Tensor | None
    attention_mask: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those it has."""
        return tuple(one for one in (self.tokens, self.labels, self.attention_mask) if one is not None)


@dataclass(slots=True)
class StepRecord:
    """One step as it was taken.

    Attributes:
        step: its number.
        cpu_state: torch's CPU generator just before the first forward pass, uint8.
        cuda_state: the device's generator then, where the model is on one.
        batches: its micro-batches.
        numbers: what was logged, perhaps still on its way from the device; emptied once the log has it.
        arrived: waits until the numbers have come; None where they need not.
    """

    step: int
    cpu_state: Tensor
    cuda_state: Tensor | None
    batches: list[Batch] = field(default_factory=list)
    numbers: dict[str, Tensor | float] = field(default_factory=dict)
    arrived: Callable[[], Any] | None = None

    def settle(self) -> dict[str, float]:
        """Read the numbers, waiting for the device where they are still on their way.

        Returns:
            The row of the log, the step included.
        """
        if self.arrived is not None:
            self.arrived()
        row: dict[str, float] = {"step": self.step}
        row |= {name: float(value) for name, value in self.numbers.items()}
        self.numbers, self.arrived = {}, None
        return row


@dataclass(frozen=True, slots=True)
class FullState:
    """Weights and optimizer state after a step, on the CPU.

    Attributes:
        step: updates applied.
        weights: by parameter name.
        moments: called `<state>.<parameter>`.
        described: kind, param_groups and steps of the optimizer.
    """

    step: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    described: Mapping[str, Any]

    @classmethod
    def take(cls, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> FullState:
        """Copy the present state; this waits for the device.

        Returns:
            The copy, sharing no memory with the training.
        """
        moments, described = describe_optimizer(module, optimizer)
        weights = {name: _copy(value) for name, value in module.named_parameters()}
        return cls(step, weights, {name: _copy(value) for name, value in moments.items()}, described)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that the black box holds.

    Attributes:
        batches: tokens, labels and masks of the steps in the ring.
        random_states: their generator states.
        full_states: weights and optimizer states.
    """

    batches: int
    random_states: int
    full_states: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.batches + self.random_states + self.full_states


class Ring:
    """The last `keep` steps, and a full state every `state_every` steps as far back as those reach.

    At most `keep // state_every + 1` full states are held.

    Attributes:
        keep: number of steps.
        state_every: steps between full states.
        records: the steps, oldest first.
        states: the full states, oldest first.
    """

    def __init__(self, keep: int, state_every: int, start: int) -> None:
        """Begin empty.

        Args:
            keep: number of steps.
            state_every: steps between full states.
            start: step that full states are counted from.
        """
        self.keep = keep
        self.state_every = state_every
        self.records: deque[StepRecord] = deque(maxlen=keep)
        self.states: list[FullState] = []
        self._start = start

    def add(self, record: StepRecord) -> None:
        """Take in a step, letting go of the oldest and of full states it leaves behind."""
        self.records.append(record)
        # A state after step t is where a replay of the ring begins as long as step t + 1 is in it.
        self.states = [state for state in self.states if state.step >= self.records[0].step - 1]

    def due(self, step: int) -> bool:
        """Tell whether a full state is to be taken after this step."""
        return (step - self._start) % self.state_every == 0

    def memory(self) -> Memory:
        """Count the bytes held now.

        Returns:
            Bytes by what they are for.
        """
        batches = (tensor for record in self.records for batch in record.batches for tensor in batch.tensors)
        states = (
            state
            for record in self.records
            for state in (record.cpu_state, record.cuda_state)
            if state is not None
        )
        full = (
            tensor
            for state in self.states
            for part in (state.weights, state.moments)
            for tensor in part.values()
        )
        return Memory(_bytes(batches), _bytes(states), _bytes(full))


def keep_batch(tokens: Tensor, labels: Tensor | None, attention_mask: Tensor | None) -> Batch:
    """Copy a batch to the CPU, without waiting where it comes from a GPU.

    Returns:
        The copy, in the smallest types that hold it.

    Raises:
        InputError: if the tokens are not whole numbers of shape [rows, length], or the labels do not fit.
    """
    whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.ndim != 2 or not whole:
        raise InputError(
            f"the recorder was given tokens of type {tokens.dtype} and shape {list(tokens.shape)}",
            remedy="give whole numbers of shape [rows, length]",
        )
    if labels is not None and labels.shape not in {tokens.shape, tokens.shape[:1]}:
        raise InputError(
            f"the recorder was given labels of shape {list(labels.shape)} for tokens of {list(tokens.shape)}",
            remedy="give labels of shape [rows, length] or [rows]",
        )
    mask = attention_mask if attention_mask is not None and attention_mask.shape == tokens.shape else None
    return Batch(
        to_host(tokens, torch.int32),
        None if labels is None or labels is tokens else to_host(labels, torch.int32),
        None if mask is None else to_host(mask, torch.uint8),
    )


def to_host(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a small tensor to the CPU; from a GPU without waiting, so read it only after an event.

    Returns:
        The copy.
    """
    source = tensor.detach()
    if source.device.type != "cuda":
        return source.to("cpu", dtype or source.dtype, copy=True).contiguous()
    source = source.to(dtype or source.dtype)
    held = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    return held.copy_(source, non_blocking=True)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Copy the generators' states: torch's on the CPU, and the device's where it is a GPU.

    Returns:
        Both as uint8 on the CPU; reading them draws nothing.
    """
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def assemble(records: Iterable[StepRecord]) -> dict[str, Tensor]:
    """Put the batches of some steps together: one row a sequence, and the step of each.

    Shorter rows are filled up at their end: tokens 0, labels -100, mask 0. Labels are written where any batch had
    some, the mask where it hides something.

    Returns:
        `input_ids`, `steps`, and where needed `labels` and `attention_mask`.
    """
    kept = list(records)
    batches = [batch for record in kept for batch in record.batches]
    if not batches:
        return {}
    length = max(batch.tokens.shape[1] for batch in batches)
    padded = any(batch.tokens.shape[1] != length for batch in batches)
    of_step = (torch.full((len(batch.tokens),), step) for step, batch in _each(kept))
    tensors = {
        "input_ids": torch.cat([_widen(batch.tokens, length, 0) for batch in batches]),
        "steps": torch.cat(list(of_step)),
    }
    if padded or any(batch.labels is not None for batch in batches):
        labels = [batch.tokens if batch.labels is None else batch.labels for batch in batches]
        tensors["labels"] = torch.cat([
            _widen(one, length, IGNORED) if one.ndim == 2 else one for one in labels
        ])
    masks = [batch.attention_mask for batch in batches]
    if any(mask is not None and not bool(mask.all()) for mask in masks):
        full = [
            torch.ones_like(batch.tokens, dtype=torch.uint8) if mask is None else mask
            for mask, batch in zip(masks, batches, strict=True)
        ]
        tensors["attention_mask"] = torch.cat([_widen(mask, length, 0) for mask in full])
    return tensors


def _each(records: Iterable[StepRecord]) -> Iterator[tuple[int, Batch]]:
    return ((record.step, batch) for record in records for batch in record.batches)


def _widen(rows: Tensor, length: int, filling: int) -> Tensor:
    return nn.functional.pad(rows, (0, length - rows.shape[1]), value=filling)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)
