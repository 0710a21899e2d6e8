"""What each step was fed: the batch of a step in micro-batches on the device, and its learning rate."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from hnf_offline.profile.batch import MicroBatch
from hnf_offline.run.batches import load_rows
from hnf_offline.run.model.loss import count_predicted
from hnf_offline.run.records import Batches, Log

_Rows = tuple[Tensor, Tensor | None]
#: Steps whose batches are read in one go.
READ_TOGETHER = 16


class StepBatches:
    """The batches of the run's steps, read some steps at a time and ahead of the training."""

    def __init__(self, source: Batches, device: torch.device, together: int) -> None:
        """Prepare reading.

        Args:
            source: the batch file.
            device: where the rows go.
            together: most rows that go through the model at once (memory).
        """
        self.source = source
        self.device = device
        self.together = together
        self._reader = ThreadPoolExecutor(1)
        self._read: dict[int, _Rows] = {}
        self._ahead: tuple[range, Future[dict[int, _Rows]]] | None = None
        self._whole: tuple[MicroBatch, ...] | None = None
        self._index: dict[int, list[int]] | None = None
        if source.steps is not None:
            self._index = {}
            for row, step in enumerate(source.steps):
                self._index.setdefault(step, []).append(row)

    def has(self, step: int) -> bool:
        """Tell whether the file holds the batch of a step.

        Returns:
            True where it does.
        """
        return len(self.rows_of(step)) > 0

    def rows_of(self, step: int) -> Sequence[int]:
        """Name the rows of a step's batch.

        Returns:
            Row numbers, empty where the file does not hold that step.
        """
        if self._index is not None:
            return self._index.get(step, ())
        return self.source.rows_of_step(step)

    def of(self, step: int, accumulation: int = 1) -> tuple[MicroBatch, ...]:
        """Give the batch of a step.

        Args:
            step: the step.
            accumulation: micro-batches whose means count alike; 1 for the mean over all tokens.

        Returns:
            Micro-batches whose weights sum to 1; empty where the file does not hold that step.
        """
        numbers = self.rows_of(step)
        if not len(numbers):
            return ()
        everything = len(numbers) == self.source.rows
        if everything and accumulation == 1 and self._whole is not None:
            return self._whole
        tokens, labels = self._rows(step)
        micro = cut(tokens, labels, accumulation, self.together, self.device)
        if everything and accumulation == 1:
            self._whole = micro
        return micro

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _rows(self, step: int) -> _Rows:
        if step not in self._read:
            if self._ahead is not None and step in self._ahead[0]:
                self._read = self._ahead[1].result()
            else:
                self._read = self._read_from(step)
            following = max(self._read) + 1
            if self.has(following):
                steps = range(following, following + READ_TOGETHER)
                self._ahead = (steps, self._reader.submit(self._read_from, following))
        return self._read[step]

    def _read_from(self, first: int) -> dict[int, _Rows]:
        """Read the batches of some steps at once: opening the file costs more than its rows."""
        numbers: dict[int, Sequence[int]] = {}
        for step in range(first, first + READ_TOGETHER):
            rows = self.rows_of(step)
            if not len(rows) or len(rows) == self.source.rows:
                break
            numbers[step] = rows
        numbers = numbers or {first: self.rows_of(first)}
        tokens, labels = load_rows(self.source, [row for rows in numbers.values() for row in rows])
        if self.device.type == "cuda":
            tokens, labels = tokens.pin_memory(), None if labels is None else labels.pin_memory()
        sizes = [len(rows) for rows in numbers.values()]
        split = zip(
            torch.split(tokens, sizes),
            [None] * len(sizes) if labels is None else torch.split(labels, sizes),
            strict=True,
        )
        return dict(zip(numbers, split, strict=True))


def cut(
    tokens: Tensor, labels: Tensor | None, accumulation: int, together: int, device: torch.device
) -> tuple[MicroBatch, ...]:
    """Cut rows into micro-batches: by the run's accumulation, and again where memory asks for it.

    Returns:
        Micro-batches whose weights sum to 1: shares of all predicted positions, or with `accumulation` > 1 equal
        shares for each of the run's micro-batches.
    """
    size = -(-len(tokens) // accumulation)
    pieces: list[MicroBatch] = []
    parts = range(0, len(tokens), size)
    for start in parts:
        rows = slice(start, start + size)
        own = count_predicted(tokens[rows], None if labels is None else labels[rows])
        for first in range(start, min(start + size, len(tokens)), together):
            inner = slice(first, min(first + together, start + size))
            some = tokens[inner], None if labels is None else labels[inner]
            counted = count_predicted(*some)
            if counted:
                weight = counted / own / len(parts) if accumulation > 1 else float(counted)
                pieces.append(
                    MicroBatch(
                        some[0].to(device, non_blocking=True),
                        None if some[1] is None else some[1].to(device, non_blocking=True),
                        weight,
                    )
                )
    total = sum(piece.weight for piece in pieces)
    return tuple(MicroBatch(piece.tokens, piece.labels, piece.weight / total) for piece in pieces)


class Rates:
    """The learning rate of every step, from the log or from the saved state."""

    def __init__(self, log: Log | None, saved: float) -> None:
        """Read the log's rates.

        Args:
            log: the training log, None where there is none.
            saved: rate in the saved optimizer state: that of the next update for most trainers.
        """
        known = None if log is None else log.rows.select("step", "learning_rate").drop_nulls()
        self.steps: list[int] = [] if known is None else known["step"].to_list()
        self.values: list[float] = [] if known is None else known["learning_rate"].to_list()
        self.saved = saved

    def scaled(self, factor: float) -> Rates:
        """Give the same rates times a factor.

        Returns:
            New rates.
        """
        other = Rates(None, self.saved * factor)
        other.steps, other.values = self.steps, [value * factor for value in self.values]
        return other

    @property
    def logged(self) -> bool:
        """Whether the log has learning rates at all."""
        return bool(self.steps)

    def of(self, step: int, *, source: str = "log", offset: int = 0) -> float:
        """Give the rate of a step; between logged steps it is interpolated, beyond the log it stays.

        Args:
            step: the step.
            source: "log" or "saved".
            offset: the rate of step s stands in the log at s + offset.

        Returns:
            The rate.
        """
        if source == "saved" or not self.steps:
            return self.saved
        at = step + offset
        after = bisect.bisect_left(self.steps, at)
        if after == len(self.steps):
            return self.values[-1]
        if self.steps[after] == at or after == 0:
            return self.values[after]
        before = after - 1
        share = (at - self.steps[before]) / (self.steps[after] - self.steps[before])
        return (1 - share) * self.values[before] + share * self.values[after]
