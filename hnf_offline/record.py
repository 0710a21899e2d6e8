"""The flight recorder: a few lines in any training loop leave a run that can be analysed afterwards.

    recorder = Recorder("runs/mine", every=100, model={"model_type": "gpt", ...}, training={"seed": 0})
    recorder.save_batches(tokens)                       # rows to replay later
    for step in range(1, steps + 1):
        ...                                             # forward, backward, optimizer.step(), scheduler.step()
        recorder.record(step, module, optimizer, loss=loss, grad_norm=norm)

Written: `config.json`, `log.jsonl` (one line a step), `batches.safetensors`, and for every recorded step
`checkpoints/step-000100/` with `model.safetensors` and `optimizer.safetensors` (state by parameter name).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hnf_offline.errors import InputError

FORMAT = "hnf_offline.record/1"


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
        config = {
            "format": FORMAT,
            "model": dict(model or {}),
            "optimizer": dict(optimizer or {}),
            "training": dict(training or {}),
        }
        _write_text(self.directory / "config.json", json.dumps(config, indent=2) + "\n")
        self._log = (self.directory / "log.jsonl").open("a", encoding="utf-8")

    def save_batches(self, tokens: Tensor, labels: Tensor | None = None, steps: Tensor | None = None) -> None:
        """Save rows to replay later: a fixed sample of the training data, or the batches themselves.

        Args:
            tokens: [rows, length], integers.
            labels: [rows, length] or [rows]; None where the labels are the tokens.
            steps: [rows], the step at which each row was trained on; None for a fixed sample.
        """
        tensors = {"input_ids": tokens.to(torch.int32)}
        if labels is not None:
            tensors["labels"] = labels.to(torch.int32)
        if steps is not None:
            tensors["steps"] = steps.to(torch.int64)
        _save(self.directory / "batches.safetensors", tensors, {})

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
        # Python writes NaN and Infinity bare, as trainers do; the reader takes both.
        self._log.write(json.dumps({name: _short(value) for name, value in row.items()}) + "\n")
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
        folder = self.directory / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        _save(folder / "model.safetensors", dict(module.named_parameters()), {})
        tensors, described = describe_optimizer(module, optimizer)
        _save(folder / "optimizer.safetensors", tensors, {"optimizer": json.dumps(described)})

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def describe_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Name an optimizer's state by parameter.

    Returns:
        Tensors called `<state>.<parameter>` for state of the parameter's shape, and a description: kind,
        param_groups with parameter names and scalar settings, and each parameter's step.

    Raises:
        InputError: if the optimizer updates a tensor that is no parameter of the module.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    tensors: dict[str, Tensor] = {}
    steps: dict[str, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in names:
                raise InputError(
                    f"the optimizer updates a tensor of shape {tuple(parameter.shape)} that is no parameter of "
                    f"{type(module).__name__}",
                    remedy="give the recorder the module that holds everything the optimizer updates",
                )
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        for key, value in state.items():
            if key == "step":
                steps[name] = int(value)
            elif isinstance(value, Tensor) and value.shape == parameter.shape:
                tensors[f"{key}.{name}"] = value
    groups = [
        {key: _plain(value) for key, value in group.items() if key != "params" and _is_plain(_plain(value))}
        | {"params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"kind": type(optimizer).__name__, "param_groups": groups, "step": steps}


def _plain(value: Any) -> Any:
    # A learning rate may be a tensor, so that a compiled step can read it.
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _short(value: float) -> float:
    """Nine significant digits: what a float32 holds."""
    return float(f"{value:.9g}") if math.isfinite(value) and not isinstance(value, int) else value


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, temporary, metadata=metadata or None)
    temporary.replace(path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
