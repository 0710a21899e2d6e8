"""What a policy may change in a training step: hooks whose defaults change nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.profile.batch import MicroBatch
    from hnf_offline.rerun.training import Training
    from hnf_offline.run.model.loss import Outcome


class Policy:
    """An intervention in a run: hooks called in the order in which a training step happens.

    One instance belongs to one training; it may keep state between steps.

    Attributes:
        second_derivatives: whether `penalty` differentiates twice, so that attention runs under the kernel that
            can (the math backend).
    """

    second_derivatives: bool = False

    def begin(self, training: Training) -> None:
        """Look at the training before its first step; change its settings."""

    def before(self, training: Training, step: int) -> None:
        """Look at the training before a step is chosen anything for, skipped or not: the place to measure S.

        S is measured at the rate of this step, so `learning_rate` of every policy is asked meanwhile: never measure
        there.
        """

    def batch_of(self, training: Training, step: int) -> int | None:
        """Choose the batch.

        Args:
            training: the training; the step under way is `training.step + 1`.
            step: the step whose batch would be used: that step itself, or what the policy before this one chose.

        Returns:
            The step whose batch is trained on at this step; None to make no update at all.
        """
        return step

    def learning_rate(self, training: Training, step: int, rate: float) -> float:
        """Change the learning rate of a step.

        Returns:
            The rate; `rate` is what the run, or the policy before this one, had.
        """
        return rate

    def forward(self, training: Training, micro: MicroBatch) -> AbstractContextManager[None]:
        """Watch, or change, the forward pass of a micro-batch of the step under way, `training.step + 1`.

        Hooks set here are gone when the pass is over, so that measurements between steps see the plain module.

        Returns:
            A context that the forward pass runs in.
        """
        return nullcontext()

    def penalty(self, training: Training, step: int, outcome: Outcome, micro: MicroBatch) -> Tensor | None:
        """Add to the loss of a micro-batch.

        Returns:
            A scalar with its graph, None for nothing. The logged loss stays without it.
        """
        return None

    def gradients(self, training: Training, step: int, norm: Tensor) -> None:
        """Change the gradients (`parameter.grad`), before the run's own clipping and the update.

        `norm` is their total norm, a scalar on the device.
        """

    def updated(self, training: Training, step: int) -> None:
        """Look at, or change, weights and optimizer state after the update."""

    def end(self, training: Training) -> None:
        """Undo what was done to the module (hooks, buffers) when the training is over."""

    def notes(self) -> tuple[str, ...]:
        """Say what happened that losses do not show.

        Returns:
            Sentences without a full stop ("3 of 40 updates were skipped: ...").
        """
        return ()
