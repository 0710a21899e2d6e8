"""Forget the optimizer's moments at the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.adam import FIRST, SECOND, TENSORS, beta_weighing, set_beta
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from torch import Tensor

    from hnf_offline.rerun.training import Training

_MOMENTS = {"first": (FIRST,), "second": (SECOND,), "both": (FIRST, SECOND)}


class ResetMoments(Policy):
    """Start the moments again from nothing, their bias correction included.

    Both: the optimizer is as fresh; torch counts updates from 1 again. One of Adam's two: torch keeps one count t
    for both corrections, so the count goes on, and the forgotten moment's beta is chosen at the k-th update since
    such that the newest gradient has the weight (1 - b) / (1 - b^k) that it has in a corrected average of k values.
    At k = 1 that is all the weight: everything older is forgotten.

    Attributes:
        moments: which of them.
    """

    def __init__(self, moments: tuple[int, ...]) -> None:
        self.moments = moments
        self._alone = False
        self._beta: float | None = None
        self._before = 0.0

    def begin(self, training: Training) -> None:
        """Forget both moments, or get ready to forget one.

        Raises:
            UsageError: if there is nothing to forget.
        """
        optimizer = training.optimizer
        self._alone, self._beta = False, None
        adam = training.recipe.kind in {"adam", "adamw"}
        if not adam and SECOND in self.moments and FIRST not in self.moments:
            raise UsageError("SGD has no second moment", remedy="write reset-moments=first for its momentum")
        if not any(
            state.get(name) is not None
            for state in optimizer.state.values()
            for name in ("exp_avg", "exp_avg_sq", "momentum_buffer")
        ):
            raise UsageError(
                "the optimizer has no moments at this checkpoint", remedy="leave reset-moments out"
            )
        if len(self.moments) == 2 or not adam:
            optimizer.state.clear()
            training.forget_stability()
            return
        self._alone = True
        self._before = self._updates(training)

    def before(self, training: Training, step: int) -> None:
        """Average the forgotten moment over the updates since, and no further back."""
        if not self._alone:
            return
        (moment,) = self.moments
        if self._beta is None:  # not in begin: a policy after this one may have changed it
            self._beta = float(training.optimizer.param_groups[0]["betas"][moment])
        updates = self._updates(training) + 1
        newest = (1 - self._beta) / (1 - self._beta ** (updates - self._before))
        set_beta(training, moment, beta_weighing(newest, updates, self._beta))

    def gradients(self, training: Training, step: int, norm: Tensor) -> None:
        """Clear the moment just before the first update, so that not even its infinities remain."""
        if not self._alone or self._updates(training) > self._before:
            return
        for state in training.optimizer.state.values():
            for name in TENSORS[self.moments[0]]:
                if name in state:
                    state[name].zero_()

    @staticmethod
    def _updates(training: Training) -> float:
        return max(
            (float(state["step"]) for state in training.optimizer.state.values() if "step" in state),
            default=0.0,
        )


@policy(
    "reset-moments",
    value="[first|second|both]",
    summary="The optimizer forgets its moments at the checkpoint (both; or only one of Adam's), as if it began there.",
    formula="m, v <- 0 and their bias correction counts updates from 1 again; the weights stay",
    reference=(
        "momentum reset against spikes: Huang et al. 2025, SPAM (arXiv 2501.06842) "
        "(theirs is periodic and followed by a warm-up: join lr-warmup)"
    ),
    cost="nothing",
    example="reset-moments=both",
)
def make(value: str | None) -> Policy:
    """Read which moments.

    Returns:
        The policy.

    Raises:
        ValueError: if it is none of the three.
    """
    chosen = "both" if value is None else value.lower()
    if chosen not in _MOMENTS:
        raise ValueError(f"{value!r} is none of {', '.join(_MOMENTS)}")
    return ResetMoments(_MOMENTS[chosen])
