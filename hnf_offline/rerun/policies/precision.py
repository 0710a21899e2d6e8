"""Train in another floating-point format under autocast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.arguments import fields
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import policy

if TYPE_CHECKING:
    import torch

    from hnf_offline.rerun.training import Training

_NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
}


class Precision(Policy):
    """Runs the forward pass under autocast; float16 brings a gradient scaler, whose skipped updates are counted."""

    def __init__(self, precision: str, scaling: Mapping[str, float | int] | None = None) -> None:
        """Choose the format.

        Args:
            precision: "float32", "bfloat16" or "float16".
            scaling: settings of torch's gradient scaler; None for torch's own.
        """
        self.precision = precision
        self.scaling = scaling
        self.skipped = 0
        self.taken = 0
        self._scaler: torch.amp.GradScaler | None = None
        self._scale = 0.0

    def begin(self, training: Training) -> None:
        """Set autocast and scaler.

        Raises:
            UsageError: if another policy asks for another format, or the device has no gradient scaler.
        """
        from torch.amp import GradScaler

        self.skipped = self.taken = 0
        self._scaler = None
        others = {other.precision for other in training.policies if isinstance(other, Precision)}
        if len(others) > 1:
            raise UsageError(
                f"policies that ask for {' and '.join(sorted(others))} cannot act together",
                remedy="a gradient scaler needs precision=fp16; give the others an arm of their own",
            )
        training.precision = self.precision
        if self.precision != "float16" or (training.scaler is not None and self.scaling is None):
            return
        kind = training.device.type
        scaler = GradScaler(kind, **self.scaling) if self.scaling else GradScaler(kind)  # type: ignore[arg-type]
        if not scaler.is_enabled():
            raise UsageError(f"{kind} has no gradient scaler", remedy="use --device cpu or precision=bf16")
        self._scaler = training.scaler = scaler
        self._scale = float(scaler.get_scale())

    def updated(self, training: Training, step: int) -> None:
        """Count the updates that the scaler skipped: those after which its scale fell."""
        if self._scaler is None or training.scaler is not self._scaler:
            return
        scale = float(self._scaler.get_scale())
        self.taken += 1
        self.skipped += scale < self._scale or scale == 0.0
        self._scale = scale

    def notes(self) -> tuple[str, ...]:
        """Say how many updates were skipped.

        Returns:
            One sentence where this policy scaled gradients, none otherwise.
        """
        if not self.taken:
            return ()
        return (
            f"{self.skipped} of {self.taken} updates skipped because a float16 gradient overflowed; "
            f"the loss scale ended at {self._scale:g}",
        )


@policy(
    "precision",
    value="float32|bf16|fp16",
    summary="Compute in another floating-point format; changes the function at once, by rounding.",
    formula="autocast: matrix products in the format, norms, softmax and loss in float32, weights and optimizer "
    "in float32; fp16 brings torch's GradScaler (2^16, growth 2 after 2000 clean steps, halved at overflow)",
    reference="Micikevicius et al. 2018, Mixed precision training, arXiv 1710.03740",
    cost="none but the format's own speed; on a CPU usually slower than float32",
    example="precision=bf16",
)
def make(text: str | None) -> Precision:
    """Read "float32", "bf16" or "fp16".

    Returns:
        The policy.

    Raises:
        ValueError: if it is none of them.
    """
    (given,) = fields(text, ["float32, bf16 or fp16"], required=1)
    name = str(given).lower()
    if name not in _NAMES:
        raise ValueError(f"{given!r} is none of float32, bf16, fp16")
    return Precision(_NAMES[name])
