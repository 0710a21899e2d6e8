"""From a captured call to a map of independent items: tokens for norms and MLPs, sequences for attention and blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.profile.maps.capture import Call

#: Tokens on which maps of single tokens are looked at, spread evenly.
TOKENS = 16
#: Relative difference up to which a repeated call counts as the same; float32 sums in another order.
REPEATS = 1e-3


@dataclass(frozen=True, slots=True)
class Items:
    """A map of independent items at a point.

    Attributes:
        function: [items, ...] -> [items, ...].
        point: the items' hidden states, [items, ...].
        value: the map there, [items, ...].
    """

    function: Callable[[Tensor], Tensor]
    point: Tensor
    value: Tensor


class LeftOutError(Exception):
    """A module's map cannot be measured; `reason` is the number that `map.left_out` tells."""

    def __init__(self, reason: int) -> None:
        super().__init__(reason)
        self.reason = reason


#: Reasons of `map.left_out`.
NO_HIDDEN_STATE, DOES_NOT_REPEAT, NO_DERIVATIVE, NO_MODULE, NO_MEMORY = 1, 2, 3, 4, 5


def token_items(call: Call) -> Items:
    """See a call as a map of single tokens.

    Returns:
        At most `TOKENS` tokens, evenly spread over all.

    Raises:
        LeftOutError: if it has no hidden state, or does not give the same for these tokens alone.
    """
    if call.given is None or call.output is None or call.given.shape[:-1] != call.output.shape[:-1]:
        raise LeftOutError(NO_HIDDEN_STATE)
    tokens, outputs = call.given.flatten(0, -2), call.output.flatten(0, -2)
    chosen = torch.linspace(0, len(tokens) - 1, min(TOKENS, len(tokens)), device=tokens.device).round().long()
    leading = (1,) * (call.given.ndim - 2)

    def function(some: Tensor) -> Tensor:
        return call.again(some.reshape(*leading, *some.shape)).reshape(len(some), -1)

    return _repeated(Items(function, tokens[chosen], outputs[chosen]))


def sequence_items(call: Call, sequences: int) -> Items:
    """See a call as a map of whole sequences.

    Args:
        call: of a block or attention module.
        sequences: how many were replayed.

    Returns:
        One item a sequence.

    Raises:
        LeftOutError: if its hidden state is not [sequences, tokens, width] or [tokens, sequences, width], or the
            call does not repeat.
    """
    if call.given is None or call.output is None or call.given.ndim != 3 or call.output.ndim != 3:
        raise LeftOutError(NO_HIDDEN_STATE)
    if call.given.shape[0] == sequences == call.output.shape[0]:
        return _repeated(Items(call.again, call.given, call.output))
    if call.given.shape[1] == sequences == call.output.shape[1]:

        def function(state: Tensor) -> Tensor:
            return call.again(state.transpose(0, 1)).transpose(0, 1)

        return _repeated(Items(function, call.given.transpose(0, 1), call.output.transpose(0, 1)))
    raise LeftOutError(NO_HIDDEN_STATE)


def _repeated(items: Items) -> Items:
    """Make sure that the map, called on the point, gives what the replay gave."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        value = items.function(items.point)
    if value.shape != items.value.shape:
        raise LeftOutError(DOES_NOT_REPEAT)
    known = value.isfinite() & items.value.isfinite()
    difference = torch.where(known, value - items.value, 0.0).norm()
    # What is not finite has to be so both times, in the same places.
    same = (value.isfinite() == items.value.isfinite()).all()
    close = difference <= REPEATS * torch.where(known, items.value, 0.0).norm()
    if not bool(same & close):
        raise LeftOutError(DOES_NOT_REPEAT)
    return items
