"""The replayed loss itself: what everything else is a derivative of, and the proof that the data fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.quantities.registry import quantity

if TYPE_CHECKING:
    from torch import Tensor


@quantity(
    "replay.loss",
    unit="nats",
    formula="mean cross-entropy of the replayed rows under the checkpoint's weights",
    reference="definition",
    tier="forward",
    layers="the whole model",
    reading="On the rows of the next training step it must equal the logged loss; then model, weights and data fit.",
    cannot="Dropout, other precision or another loss in training make it differ without any fault here.",
)
def replay_loss(loss: Tensor) -> Tensor:
    """Mean loss of the replayed rows.

    Returns:
        A scalar.
    """
    return loss
