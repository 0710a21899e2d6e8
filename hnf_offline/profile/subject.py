"""What is measured at one checkpoint: a module with its weights in it, and the rows to replay."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.suffix.calibration import ProductChoice
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.optimizer import OptimizerState


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: a module with a checkpoint's weights in it, and the data.

    Attributes:
        step: the checkpoint's step.
        module: in eval mode, on its device.
        layers: its layers.
        optimizer: the saved state, None where there is none (or none that can be assigned).
        halves: two micro-batches for spread (one where there is a single row).
        batches: micro-batches of all rows for gradients and the whole model's curvature, as large as memory
            allows.
        name: name of the replayed rows.
        training_batches: the same rows in batches of the size the optimizer saw, each in micro-batches: the
            first one for the layers' curvature, all for the spread of S; empty where that size is not known.
        training_batch_name: name of the first training batch.
        keep_graphs: whether second-derivative graphs of all micro-batches fit into memory together.
        lot_bytes: where they do not: bytes of parameters whose layers may share each graph that is built.
        copies: changed copies of a micro-batch that may go through the model together.
        products: how products are made, found once for all checkpoints.
    """

    step: int
    module: nn.Module
    layers: tuple[Layer, ...]
    optimizer: OptimizerState | None
    halves: tuple[MicroBatch, ...]
    batches: tuple[MicroBatch, ...]
    name: str
    training_batches: tuple[tuple[MicroBatch, ...], ...] = ()
    training_batch_name: str = ""
    keep_graphs: bool = True
    lot_bytes: int = 0
    copies: int = 8
    products: ProductChoice = field(default_factory=ProductChoice)
