"""The replayed loss and logits along a direction in the parameters, by forward passes; the module stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.profile.batch import MicroBatch, rows_of
from hnf_offline.profile.effort import spend
from hnf_offline.run.model.loss import Outcome, evaluate


class Replay(nn.Module):
    """A module together with its loss, so that both can be called with other parameters."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module without copying it."""
        super().__init__()
        self.module = module

    def forward(self, batch: MicroBatch) -> Outcome:
        """Evaluate a micro-batch.

        Returns:
            Loss and logits.
        """
        return evaluate(self.module, batch.tokens, batch.labels)

    def with_parameters(self, parameters: Mapping[str, Tensor], batch: MicroBatch) -> Outcome:
        """Evaluate a micro-batch with some parameters replaced for this call alone, also if it fails.

        Returns:
            Loss and logits.
        """
        named = {f"module.{name}": value for name, value in parameters.items()}
        outcome: Outcome = functional_call(self, named, (batch,))
        return outcome


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Switch fused attention off: it has no forward derivative, and another rounding than the exact products.

    Yields:
        Nothing.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def loss_with(replay: Replay, parameters: Mapping[str, Tensor], batches: Sequence[MicroBatch]) -> float:
    """Replay the loss with other parameters; call it within `plain_kernels`.

    Args:
        replay: the module.
        parameters: parameters and buffers by name; those that are absent stay as they are in the module.
        batches: micro-batches whose weights sum to 1.

    Returns:
        The weighted loss.
    """
    losses = [batch.weight * replay.with_parameters(parameters, batch).loss.double() for batch in batches]
    spend("forward", rows_of(batches))
    return float(torch.stack(losses).sum())


@dataclass(frozen=True, slots=True)
class Ray:
    """Points w - c u of parameter space.

    Attributes:
        replay: the module with the weights w in it.
        batches: micro-batches whose weights sum to 1.
        update: u by parameter name.
    """

    replay: Replay
    batches: Sequence[MicroBatch]
    update: Mapping[str, Tensor]

    def _at(self, multiple: float) -> dict[str, Tensor]:
        return {
            name: value.detach() - multiple * self.update[name]
            for name, value in self.replay.module.named_parameters()
            if name in self.update
        }

    def loss(self, multiple: float) -> float:
        """Replay the loss at w - c u; memory for one more copy of the parameters.

        Returns:
            The weighted loss.
        """
        with plain_kernels():
            return loss_with(self.replay, self._at(multiple), self.batches)


@dataclass(frozen=True, slots=True)
class LogitChange:
    """First-order change of the logits over an update, position by position.

    Attributes:
        span: largest minus smallest change within a position, [positions].
        slope: first-order change of the loss by the same pass; NaN where finite differences gave the span.
        exact: whether it is a forward-mode derivative; False for a central difference.
    """

    span: Tensor
    slope: float
    exact: bool


def logit_change(ray: Ray) -> LogitChange | None:
    """Differentiate the logits along an update: one forward-mode pass, or a central difference where there is none.

    Returns:
        The change over the whole update w -> w - u; None where the module hides its logits.

    Raises:
        RuntimeError: where memory runs out.
    """
    # A forward pass that carries a tangent; two passes where that cannot be.
    spend("forward", rows_of(ray.batches), times=2)
    try:
        found = _by_forward_mode(ray)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        found = None  # some operation of this module has no forward derivative
    return _by_differences(ray) if found is None else found


def _by_forward_mode(ray: Ray) -> LogitChange | None:
    spans: list[Tensor] = []
    slopes: list[Tensor] = []
    with plain_kernels(), forward_ad.dual_level():
        dual = {
            name: forward_ad.make_dual(value.detach(), -ray.update[name])  # type: ignore[no-untyped-call]
            for name, value in ray.replay.module.named_parameters()
            if name in ray.update
        }
        for batch in ray.batches:
            outcome = ray.replay.with_parameters(dual, batch)
            if outcome.logits is None:
                return None
            change = forward_ad.unpack_dual(outcome.logits).tangent  # type: ignore[no-untyped-call]
            slope = forward_ad.unpack_dual(outcome.loss).tangent  # type: ignore[no-untyped-call]
            if change is None or slope is None:
                return None
            spans.append(_span(change))
            slopes.append(batch.weight * slope.double())
        return LogitChange(torch.cat(spans), float(torch.stack(slopes).sum()), True)


def _by_differences(ray: Ray) -> LogitChange | None:
    weights = [value for name, value in ray.replay.module.named_parameters() if name in ray.update]
    size = torch.stack([torch.linalg.vector_norm(value.detach()) for value in weights]).norm()
    length = torch.stack([torch.linalg.vector_norm(value) for value in ray.update.values()]).norm()
    # The third root of the rounding balances it against the cubic term of a central difference.
    step = float(torch.finfo(size.dtype).eps ** (1 / 3) * size / length)
    spans: list[Tensor] = []
    with plain_kernels():
        before, behind = ray._at(-step), ray._at(step)
        for batch in ray.batches:
            low = ray.replay.with_parameters(before, batch).logits
            high = ray.replay.with_parameters(behind, batch).logits
            if low is None or high is None:
                return None
            spans.append(_span((high - low) / (2 * step)))
    return LogitChange(torch.cat(spans), float("nan"), False)


def _span(change: Tensor) -> Tensor:
    """Largest minus smallest entry of every position, [positions, vocabulary] -> [positions]."""
    low, high = torch.aminmax(change, dim=-1)
    return high - low
