"""The black box inside the Lightning Trainer, automatic optimization with one optimizer (extra `lightning`).

from hnf_offline.record.lightning_callback import FlightRecorderCallback

Trainer(callbacks=[FlightRecorderCallback("boxes/mine")]).fit(module, loader)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hnf_offline.errors import InputError, MissingExtraError, UsageError
from hnf_offline.record.flight import FlightRecorder, TakenStep

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError:
        raise MissingExtraError("lightning", "lightning", "the recorder of the Lightning Trainer") from None

#: tokens, labels (None where they are the tokens), attention mask (None where nothing is hidden).
Parts = tuple[Tensor, Tensor | None, Tensor | None]


class FlightRecorderCallback(Callback):  # type: ignore[misc]
    """Records a Lightning Trainer's steps in a black box.

    Attributes:
        box: the black box while fitting, None before.
    """

    def __init__(
        self, directory: Path | str, *, parts_of: Callable[[Any], Parts] | None = None, **options: Any
    ) -> None:
        """Set it up; it is switched on when fitting begins.

        Args:
            directory: as for `FlightRecorder`.
            parts_of: gives tokens, labels and mask of a batch; None for mappings with `input_ids`, `labels`,
                `attention_mask`, for pairs of tokens and labels, and for tokens alone.
            **options: as for `FlightRecorder`; `training` given here is added to what the Trainer says.
        """
        super().__init__()
        self.box: FlightRecorder | None = None
        self._directory = directory
        self._parts_of = parts_of or parts_of_batch
        self._options = options
        self._open: TakenStep | None = None
        self._losses: list[Tensor] = []
        self._norm: Tensor | None = None
        self._updates = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Switch the box on, in the first process only.

        Raises:
            UsageError: if the module optimizes by hand or with several optimizers.
        """
        if not trainer.is_global_zero:
            return
        if len(trainer.optimizers) != 1 or not getattr(pl_module, "automatic_optimization", True):
            raise UsageError(
                "the recorder's callback needs automatic optimization with one optimizer",
                remedy="use hnf_offline.record.FlightRecorder inside training_step",
            )
        optimizer = trainer.optimizers[0]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        options = dict(self._options)
        training = _training(trainer) | dict(options.pop("training", None) or {})
        self._updates = trainer.global_step
        self.box = FlightRecorder(
            self._directory, pl_module, optimizer, steps_done=self._updates, training=training, **options
        )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the micro-batch and, before the first of a step, the generators."""
        if self.box is None:
            return
        if self._open is None:
            self._open, self._losses, self._norm = self.box.begin(), [], None
        self._open.batch(*self._parts_of(batch))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Take the gradient norm; Lightning has not clipped yet."""
        if self.box is not None:
            gradients = [value.grad for value in pl_module.parameters() if value.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients) if gradients else None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step once its update is taken; its loss is the sum of what Lightning divided before."""
        if self.box is None or self._open is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if trainer.global_step > self._updates:
            self._updates = trainer.global_step
            taken, self._open = self._open, None
            total = torch.stack(self._losses).sum() if self._losses else None
            taken.done(loss=total, grad_norm=self._norm)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Freeze, with the batch that failed."""
        if self.box is not None:
            self.box.__exit__(type(exception), exception, None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Switch the box off."""
        if self.box is not None:
            self.box.close()


def parts_of_batch(batch: Any) -> Parts:
    """Find tokens, labels and mask in a batch of one of the usual shapes.

    Returns:
        The three; labels and mask None where there are none.

    Raises:
        InputError: if there are no tokens in it.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("input_ids"), Tensor):
        return batch["input_ids"], batch.get("labels"), batch.get("attention_mask")
    if isinstance(batch, Tensor):
        return batch, None, None
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        labels = batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
        return batch[0], labels, None
    raise InputError(
        f"the recorder finds no tokens in a batch of type {type(batch).__name__}",
        remedy="give the callback parts_of, a function that returns tokens, labels and attention mask",
    )


def _training(trainer: Any) -> dict[str, Any]:
    # Lightning clips by norm unless told otherwise; its precision is a word such as "bf16-mixed".
    word = str(getattr(trainer, "precision", "32-true"))
    precision = "bfloat16" if word.startswith("bf16") else "float16" if word.startswith("16") else "float32"
    found: dict[str, Any] = {"precision": precision, "precision_as_given": word}
    bound = getattr(trainer, "gradient_clip_val", None)
    if bound is not None:
        by_value = str(getattr(trainer, "gradient_clip_algorithm", None) or "norm").endswith("value")
        found["max_grad_value" if by_value else "max_grad_norm"] = float(bound)
    found["accumulate_grad_batches"] = int(getattr(trainer, "accumulate_grad_batches", 1))
    found["world_size"] = int(getattr(trainer, "world_size", 1))
    return found
