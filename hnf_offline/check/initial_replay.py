"""An initial checkpoint on a few rows: its first loss, and how the residual stream grows over the blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnf_offline.errors import UserError
from hnf_offline.run.records import Checkpoint, Run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

#: Rows that are replayed.
ROWS = 4


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What a forward pass of an initial checkpoint shows.

    Attributes:
        loss: mean loss of the rows.
        classes: what the head chooses from; None where the module does not show its logits.
        stream: root mean square of the residual stream after each block, in order.
    """

    loss: float
    classes: int | None
    stream: tuple[float, ...]

    @property
    def chance(self) -> float | None:
        """Loss of a head that knows nothing: the logarithm of the classes; None where their number is not known."""
        return math.log(self.classes) if self.classes is not None and self.classes > 1 else None


def first_pass(
    run: Run, checkpoint: Checkpoint, weights: Mapping[str, Tensor], model: str | None, device: str
) -> FirstPass | str:
    """Replay a few rows on an initial checkpoint.

    Args:
        run: the run, for its model and batches.
        checkpoint: the checkpoint.
        weights: its tensors.
        model: `package.module:function` that builds the model, None where the run says.
        device: where to replay.

    Returns:
        What it shows, or why it could not be replayed.
    """
    if run.batches is None:
        return "the run has no batches"
    if run.model is None and model is None:
        return "the run does not say how to build its model"
    import torch

    from hnf_offline.profile.forward import forward_rows
    from hnf_offline.profile.measure import subject_of
    from hnf_offline.profile.session import full_precision, memory_now, open_session
    from hnf_offline.profile.settings import ProfileSettings
    from hnf_offline.run.model.build import load_weights_into
    from hnf_offline.run.model.loss import evaluate

    try:
        session = open_session(run, ProfileSettings(tier="forward", rows=ROWS, device=device), model)
        if session is None:
            return "the run has no model or no batches"
        load_weights_into(session.module, dict(weights))
        with full_precision(), torch.no_grad():
            subject = subject_of(session, checkpoint.step, None, memory_now(session))
            rows = forward_rows(subject)
            part = subject.halves[0]
            logits = evaluate(session.module, part.tokens, part.labels).logits
    except UserError as error:
        return error.reason
    except Exception as error:  # a user's model can fail in any way
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    stream = sorted((row.depth, row.value) for row in rows if row.quantity == "residual.rms")
    (loss,) = (row.value for row in rows if row.quantity == "replay.loss")
    classes = None if logits is None or logits.ndim < 2 else int(logits.shape[-1])
    return FirstPass(loss, classes, tuple(value for _, value in stream))
