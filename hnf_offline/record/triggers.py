"""What makes the black box freeze: rules that see one log row after another and never a later one. Torch-free."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Protocol

#: A standard normal has its median absolute deviation at 1 / 1.4826.
SIGMA_PER_MAD = 1.4826
#: Floor of sigma on the log scale, so that a loss that hardly moves does not make every step a spike.
SMALLEST_SIGMA = 1e-3
SMALLEST_LOSS = 1e-30


class Trigger(Protocol):
    """A rule that says, from the rows so far, whether something just went wrong."""

    @property
    def urgent(self) -> bool:
        """Whether it counts within the pause after an earlier freeze, too."""
        ...

    def see(self, row: Mapping[str, float]) -> str | None:
        """Take in the next row of the log.

        Args:
            row: `step`, `loss`, `grad_norm`, `learning_rate` and others, where known.

        Returns:
            Why to freeze, None where nothing happened.
        """
        ...


class LossSpike:
    """Robust z of the log loss against the steps before it.

    z = (log L - median) / (1.4826 MAD) over the last `window` finite losses before this one; a spike is z of at
    least `sigmas` with a rise of more than `rise` in log loss (10 % by default). Where a loss in the window is
    zero or negative, the loss itself stands for its logarithm, in units of the window's median magnitude.

    Source: the rule "robust" of `hnf spikes`, its first part.
    """

    urgent = False

    def __init__(
        self, *, window: int = 60, minimum: int = 20, sigmas: float = 6.0, rise: float = 0.1
    ) -> None:
        """Set the rule.

        Args:
            window: losses to compare with.
            minimum: losses needed before it speaks.
            sigmas: smallest z.
            rise: smallest rise in log loss.
        """
        self._seen: deque[float] = deque(maxlen=window)
        self._minimum = minimum
        self._sigmas = sigmas
        self._rise = rise

    def see(self, row: Mapping[str, float]) -> str | None:
        """Compare the row's loss with those before it.

        Returns:
            "loss 6.28 is 14.1 robust sigmas above ...", or None.
        """
        loss = row.get("loss")
        if loss is None or not math.isfinite(loss):
            return None
        before = tuple(self._seen)
        self._seen.append(loss)
        if len(before) < self._minimum:
            return None
        if min(before) > 0 and loss > 0:
            level, levels, unit = math.log(loss), [math.log(value) for value in before], 1.0
        else:
            unit = max(median(abs(value) for value in before), SMALLEST_LOSS)
            level, levels = loss, list(before)
        centre = median(levels)
        # Most steps end here, before the second median.
        if level - centre <= self._rise * unit:
            return None
        sigma = SIGMA_PER_MAD * median(abs(value - centre) for value in levels)
        z = (level - centre) / max(sigma, SMALLEST_SIGMA * unit)
        if z < self._sigmas:
            return None
        return f"loss {loss:.6g} is {z:.1f} robust sigmas above the {len(before)} losses before it"


class NotFinite:
    """A loss or gradient norm that became NaN or infinite, once until it is finite again."""

    urgent = True

    def __init__(self) -> None:
        """Begin with everything finite."""
        self._broken = False

    def see(self, row: Mapping[str, float]) -> str | None:
        """Look for the first number that is none.

        Returns:
            "grad_norm is inf", or None.
        """
        broken = [
            f"{name} is {row[name]}"
            for name in ("loss", "grad_norm")
            if name in row and not math.isfinite(row[name])
        ]
        fresh = bool(broken) and not self._broken
        self._broken = bool(broken)
        return " and ".join(broken) if fresh else None


class StabilityAbove:
    """The estimated stability ratio S rising through the edge, after it was clearly below.

    It needs `stability_ratio` in some rows (see `StabilityEstimate`) and says nothing without.
    """

    urgent = False

    def __init__(self, *, threshold: float = 1.0, armed_below: float = 0.9) -> None:
        """Set the two levels.

        Args:
            threshold: S at which it speaks.
            armed_below: S has to have been below this before; a run that hovers at the edge says nothing new.
        """
        self._threshold = threshold
        self._armed_below = armed_below
        self._armed = False

    def see(self, row: Mapping[str, float]) -> str | None:
        """Look at the estimate, where the row has one.

        Returns:
            "the stability ratio rose to 1.12", or None.
        """
        ratio = row.get("stability_ratio")
        if ratio is None or not math.isfinite(ratio):
            return None
        fires = self._armed and ratio >= self._threshold
        self._armed = ratio < self._armed_below or (self._armed and not fires)
        return f"the stability ratio rose to {ratio:.3g} (estimate, this batch)" if fires else None
