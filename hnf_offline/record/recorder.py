"""Checkpoints and log of a whole run, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError
from hnf_offline.record.files import checkpoint_name, log_line, save_checkpoint, save_config, save_tensors
from hnf_offline.record.optimizer import describe_optimizer


class Recorder:
    """Records a training run as plain files; it changes nothing in the training.

    Attributes:
        directory: where the run is written.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        every: int | Callable[[int], bool],
        model: Mapping[str, Any] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a recording.

        Args:
            directory: a new or empty directory.
            every: a checkpoint every so many steps, or a function of the step that says when.
            model: the model's configuration (`model_type` "gpt" for the built-in decoder, or a Hugging Face one).
            optimizer: hyper-parameters worth comparing between runs.
            training: other hyper-parameters worth comparing between runs.

        Raises:
            InputError: if the directory already holds files: a recording never overwrites one.
        """
        self.directory = Path(directory)
        if self.directory.exists() and any(self.directory.iterdir()):
            raise InputError("already holds files", path=self.directory, remedy="record into a new directory")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._due = every if callable(every) else lambda step: step % every == 0
        save_config(self.directory, model, optimizer, training)
        self._log = (self.directory / "log.jsonl").open("a", encoding="utf-8")

    def save_batches(self, tokens: Tensor, labels: Tensor | None = None, steps: Tensor | None = None) -> None:
        """Save rows to replay later: a fixed sample of the training data, or the batches themselves.

        Args:
            tokens: [rows, length], integers; or images [rows, channels, height, width], floating-point.
            labels: [rows, length] or [rows]; None where the labels are the tokens. Images have one each.
            steps: [rows], the step at which each row was trained on; None for a fixed sample.
        """
        tensors = (
            {"pixel_values": tokens.to(torch.float32)}
            if tokens.is_floating_point()
            else {"input_ids": tokens.to(torch.int32)}
        )
        if labels is not None:
            tensors["labels"] = labels.to(torch.int32)
        if steps is not None:
            tensors["steps"] = steps.to(torch.int64)
        save_tensors(self.directory / "batches.safetensors", _copies(tensors))

    def record(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss: Tensor | float,
        grad_norm: Tensor | float | None = None,
        learning_rate: float | None = None,
        **others: Tensor | float,
    ) -> None:
        """Note a finished step, and save a checkpoint when one is due.

        Call it after the optimizer's and the scheduler's step, so that the saved learning rate is that of the
        next update.

        Args:
            step: optimizer updates so far, this one included.
            module: the model.
            optimizer: its optimizer.
            loss: the loss of this step, computed before its update.
            grad_norm: norm of the gradient before clipping.
            learning_rate: the rate this step was taken with; the optimizer's present one if None.
            **others: further numbers for the log.
        """
        rate = optimizer.param_groups[0]["lr"] if learning_rate is None else learning_rate
        row: dict[str, float] = {"step": step, "loss": _number(loss)}
        if grad_norm is not None:
            row["grad_norm"] = _number(grad_norm)
        row |= {"learning_rate": _number(rate)} | {name: _number(value) for name, value in others.items()}
        self._log.write(log_line(row))
        self._log.flush()
        if self._due(step):
            self.checkpoint(step, module, optimizer)

    def checkpoint(self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Save weights and optimizer state now.

        Args:
            step: optimizer updates so far.
            module: the model.
            optimizer: its optimizer.
        """
        moments, described = describe_optimizer(module, optimizer)
        folder = self.directory / "checkpoints" / checkpoint_name(step)
        save_checkpoint(folder, _copies(dict(module.named_parameters())), _copies(moments), described)

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
