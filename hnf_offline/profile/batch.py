"""The rows that are replayed: chosen once, the same at every checkpoint, cut into micro-batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hnf_offline.run.model.loss import count_predicted
from hnf_offline.run.records import Batches

#: Tokens replayed where neither the user nor the file says how many rows a step had.
DEFAULT_TOKENS = 4096
#: Images, likewise.
DEFAULT_IMAGES = 32


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows that go through the model together.

    Attributes:
        tokens: [rows, length], int64; or images, [rows, channels, height, width], floating-point.
        labels: [rows, length] or [rows]; None where the labels are the tokens.
        weight: its share of all predicted positions.
    """

    tokens: Tensor
    labels: Tensor | None
    weight: float

    def split(self, rows: int) -> tuple[MicroBatch, ...]:
        """Cut into smaller ones.

        Args:
            rows: at most so many rows each.

        Returns:
            Micro-batches whose weights sum to this one's; those without a predicted position are left out.
        """
        return _pieces(self.tokens, self.labels, rows, self.weight)


def rows_of(batches: Sequence[MicroBatch]) -> int:
    """Count the rows of some micro-batches.

    Returns:
        Rows.
    """
    return sum(len(batch.tokens) for batch in batches)


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """The rows replayed at every checkpoint.

    Attributes:
        tokens: [rows, length], int64, on the CPU; or images.
        labels: [rows, length] or [rows]; None where the labels are the tokens.
        name: what the table's `batch` column says.
        digest: content hash of tokens and labels.
    """

    tokens: Tensor
    labels: Tensor | None
    name: str
    digest: str

    @classmethod
    def of(cls, tokens: Tensor, labels: Tensor | None, name: str) -> ReplayBatch:
        """Name and hash some rows.

        Returns:
            The batch.
        """
        digest = hashlib.blake2b(tokens.contiguous().numpy().tobytes(), digest_size=16)
        if labels is not None:
            digest.update(labels.contiguous().numpy().tobytes())
        return cls(tokens, labels, name, digest.hexdigest())

    def cut(self, rows: int, device: torch.device) -> tuple[MicroBatch, ...]:
        """Cut into micro-batches of at most `rows` rows, on a device.

        Returns:
            Micro-batches whose weights sum to 1.
        """
        return tuple(
            MicroBatch(
                piece.tokens.to(device),
                None if piece.labels is None else piece.labels.to(device),
                piece.weight,
            )
            for piece in _pieces(self.tokens, self.labels, rows, 1.0)
        )

    def training_batches(self, rows: int) -> tuple[ReplayBatch, ...]:
        """Split into batches of the size the optimizer saw.

        Returns:
            The batches; only this one where it is no whole multiple of `rows`.
        """
        total = len(self.tokens)
        if rows < 1 or total % rows or total == rows:
            return (self,)
        return tuple(
            ReplayBatch.of(
                self.tokens[start : start + rows],
                None if self.labels is None else self.labels[start : start + rows],
                f"rows {start}-{start + rows - 1} of {self.name}",
            )
            for start in range(0, total, rows)
        )


def _pieces(tokens: Tensor, labels: Tensor | None, rows: int, weight: float) -> tuple[MicroBatch, ...]:
    pieces = [
        (tokens[start : start + rows], None if labels is None else labels[start : start + rows])
        for start in range(0, len(tokens), rows)
    ]
    counts = [count_predicted(*piece) for piece in pieces]
    total = max(1, sum(counts))
    return tuple(
        MicroBatch(*piece, weight * count / total)
        for piece, count in zip(pieces, counts, strict=True)
        if count
    )


def choose_rows(batches: Batches, rows: int | None) -> tuple[int, ...]:
    """Choose which rows to replay: the first ones of the file, two training batches where their size is known.

    The first, because a live monitor has them at every checkpoint; two, so that their difference shows how much
    a value depends on the batch; of the training batch's size, because curvature falls with the size of the
    batch and the optimizer feels that of its own.

    Returns:
        Row numbers in order.
    """
    if rows is None:
        usual = DEFAULT_IMAGES if batches.shape else DEFAULT_TOKENS // max(1, batches.length)
        rows = 2 * batches.rows_per_step if batches.rows_per_step else usual
    return tuple(range(min(batches.rows, max(1, rows))))
