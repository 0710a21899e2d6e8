"""The numbers of a retraining, fetched from the device in blocks so that no step waits for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hnf_offline.rerun.training import Taken

#: Steps whose numbers are fetched together.
BLOCK = 16


@dataclass(slots=True)
class Series:
    """Step by step: loss, gradient norm and learning rate.

    Attributes:
        steps: steps whose numbers were fetched.
        losses: their losses, None where no batch was taken.
        grad_norms: their gradient norms.
        learning_rates: their rates.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    grad_norms: list[float | None] = field(default_factory=list)
    learning_rates: list[float | None] = field(default_factory=list)
    _waiting: list[Taken] = field(default_factory=list)

    def add(self, taken: Taken) -> None:
        """Note a step; its numbers are fetched with those of the steps after it."""
        self._waiting.append(taken)
        if len(self._waiting) >= BLOCK:
            self.settle()

    def settle(self) -> None:
        """Fetch what is waiting, in one transfer."""
        tensors = [
            value for taken in self._waiting for value in (taken.loss, taken.grad_norm) if value is not None
        ]
        fetched = iter(torch.stack([value.float() for value in tensors]).tolist() if tensors else ())
        for taken in self._waiting:
            self.steps.append(taken.step)
            self.losses.append(None if taken.loss is None else next(fetched))
            self.grad_norms.append(None if taken.grad_norm is None else next(fetched))
            self.learning_rates.append(taken.learning_rate)
        self._waiting.clear()
