"""A tensor that was seen on its way through the model, read once for all quantities that need the same of it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.linalg.vectors import length

if TYPE_CHECKING:
    from torch import Tensor


class Observed:
    """Values [sequences, ..., units], and what has been read of them; of one or two dimensions they are one sequence.

    Attributes:
        values: the tensor.
    """

    def __init__(self, values: Tensor) -> None:
        """Hold the values; nothing is read yet.

        Args:
            values: of any shape.
        """
        self.values = values
        self._counted: dict[tuple[str, float], Tensor] = {}
        # On a CPU it costs nothing to look at a count; elsewhere it would wait for all work before it.
        self._seen = values.device.type == "cpu"

    @staticmethod
    def of(values: Tensor | Observed) -> Observed:
        """Take values as they are, or as they were read already.

        Returns:
            What was given, where it is of this class.
        """
        return values if isinstance(values, Observed) else Observed(values)

    @cached_property
    def each(self) -> Tensor:
        """The values sequence by sequence, [sequences, values]."""
        return self.values.flatten(1) if self.values.ndim > 2 else self.values.reshape(1, -1)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        import torch

        lowest, highest = torch.aminmax(self.values)
        return lowest, highest

    @property
    def lowest(self) -> Tensor:
        """The lowest value, NaN where one is; a scalar."""
        return self._ends[0]

    @property
    def highest(self) -> Tensor:
        """The highest value, NaN where one is; a scalar."""
        return self._ends[1]

    @cached_property
    def _numbers(self) -> tuple[float, float]:
        """Both ends as numbers, where that is no wait for a device."""
        return self.lowest.item(), self.highest.item()

    @cached_property
    def common(self) -> Tensor:
        """Mean over the tokens of every sequence, [sequences, units], in float32 where the values have less."""
        import torch

        wide = torch.float32 if self.values.dtype.itemsize < 4 else self.values.dtype
        tokens = self.values.reshape(len(self.each), -1, self.values.shape[-1])
        return tokens.mean(dim=1, dtype=wide)

    @cached_property
    def means(self) -> Tensor:
        """Mean of every sequence, [sequences]."""
        return self.common.mean(dim=1)

    @cached_property
    def mean_squares(self) -> Tensor:
        """Mean square of every sequence, [sequences]; float64 where the device has it."""
        return length(self.each).square() / self.each.shape[1]

    def at_least(self, limit: float) -> Tensor:
        """Share of magnitudes of at least a limit.

        Returns:
            A scalar.
        """
        if self._seen and -limit < self._numbers[0] and self._numbers[1] < limit:
            return self.lowest.new_zeros(())
        return self._share(operator.ge, limit)

    def at_most(self, limit: float) -> Tensor:
        """Share of magnitudes of at most a limit.

        Returns:
            A scalar.
        """
        return self._share(operator.le, limit)

    def _share(self, compare: Callable[[Any, float], Any], limit: float) -> Tensor:
        asked = compare.__name__, limit
        if asked not in self._counted:
            # Where nothing lies beyond one limit, nothing lies beyond a further one.
            nearer = (
                share
                for (name, other), share in self._counted.items()
                if name == compare.__name__ and compare(limit, other)
            )
            none = next((share for share in nearer if self._seen and not share), None)
            self._counted[asked] = share_of_magnitudes(self.values, compare, limit) if none is None else none
        return self._counted[asked]


def share_of_magnitudes(values: Tensor, compare: Callable[[Any, float], Any], limit: float) -> Tensor:
    """Share of values whose magnitudes stand in a relation to a limit.

    Args:
        values: of any shape.
        compare: `operator.ge` or `operator.le`.
        limit: what they are compared with, 0 or more.

    Returns:
        A scalar, where the values are.
    """
    if values.device.type != "cpu" or values.dtype.itemsize < 4:
        return share_where(values.abs(), compare, limit)
    # Both ends are compared: writing the magnitudes down would take most of the time.
    numbers = values.detach().numpy()
    if compare is operator.le:
        count = np.count_nonzero(numbers <= limit) - np.count_nonzero(numbers < -limit)
    elif limit > 0:
        count = np.count_nonzero(numbers >= limit) + np.count_nonzero(numbers <= -limit)
    else:
        count = np.count_nonzero(numbers == numbers)  # noqa: PLR0124 - all but NaN
    return values.new_full((), count / max(1, values.numel()))


def share_where(values: Tensor, compare: Callable[[Any, float], Any], limit: float) -> Tensor:
    """Share of values that stand in a relation to a limit.

    Args:
        values: of any shape.
        compare: such as `operator.gt`.
        limit: what they are compared with.

    Returns:
        A scalar, where the values are.
    """
    if values.device.type == "cpu" and values.dtype.itemsize >= 4:
        # NumPy compares and counts in a third of the time that torch takes on a CPU.
        count = np.count_nonzero(compare(values.detach().numpy(), limit))
        return values.new_full((), count / max(1, values.numel()))
    chosen: Tensor = compare(values, limit)
    return chosen.count_nonzero() / values.numel()
