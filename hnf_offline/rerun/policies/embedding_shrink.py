"""Shrink the gradient that reaches the token embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import fields, number
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hnf_offline.profile.batch import MicroBatch
    from hnf_offline.rerun.training import Training
    from hnf_offline.run.model.loss import Outcome


class EmbeddingShrink(Policy):
    """Multiplies the gradient of what the token embedding gives out; a tied head keeps its own gradient whole."""

    def __init__(self, factor: float) -> None:
        """Choose the factor.

        Args:
            factor: what the gradient is multiplied by.
        """
        self.factor = factor
        self._found = False

    @contextmanager
    def forward(self, training: Training, micro: MicroBatch) -> Iterator[None]:
        """Shrink on the way back what leaves every embedding that is given the tokens.

        Yields:
            Nothing.
        """
        from torch import nn

        handles = [
            part.register_forward_hook(self._hook(micro.tokens))
            for part in training.module.modules()
            if isinstance(part, nn.Embedding)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def penalty(self, training: Training, step: int, outcome: Outcome, micro: MicroBatch) -> None:
        """Add nothing, but make sure that there was something to shrink.

        Raises:
            UsageError: if no embedding was given the tokens.
        """
        if not self._found:
            raise UsageError(
                "--policy embedding-shrink: no torch.nn.Embedding of the model looks up the tokens",
                remedy="leave this policy out for this model",
            )

    def _hook(self, tokens: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def shrink(part: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            # Positions and segments are looked up too; only the tokens are meant.
            if arguments and _same(arguments[0], tokens):
                self._found = True
                if output.requires_grad:
                    output.register_hook(lambda gradient: gradient * self.factor)  # type: ignore[no-untyped-call]

        return shrink


def _same(looked_up: Any, tokens: Tensor) -> bool:
    if getattr(looked_up, "shape", None) is None or looked_up.numel() != tokens.numel():
        return False
    # A view of the tokens is known without waiting for the device.
    return looked_up.data_ptr() == tokens.data_ptr() or bool((looked_up.flatten() == tokens.flatten()).all())


@policy(
    "embedding-shrink",
    value="ALPHA",
    summary="Shrink the token embedding's gradient; acts on later steps, the function stays as it is.",
    formula="e -> ALPHA e + (1 - ALPHA) stop_gradient(e) behind the token embedding, so dL/de times ALPHA; what a "
    "tied head adds to the same weight stays whole",
    reference="Zeng et al. 2022, GLM-130B, arXiv 2210.02414, section 2.1 (ALPHA 0.1). Adam forgets a constant factor "
    "of an untied embedding once its moments have followed, so there it acts for some 1 / (1 - beta2) steps",
    cost="nothing",
    example="embedding-shrink=0.1",
)
def make(text: str | None) -> EmbeddingShrink:
    """Read the factor.

    Returns:
        The policy.
    """
    (factor,) = fields(text, ["ALPHA"], required=1)
    return EmbeddingShrink(number(str(factor), "ALPHA", least=0, below=1))
