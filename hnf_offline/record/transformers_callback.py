"""The black box inside the Hugging Face Trainer (extra `hf`).

    from hnf_offline.record.transformers_callback import FlightRecorderCallback

    with FlightRecorderCallback("boxes/mine") as recorder:
        Trainer(..., callbacks=[recorder]).train()

The Trainer tells a callback neither the batch nor the loss of a step, so hooks on the model see each forward pass in
training: its tokens, labels and mask, torch's generators just before it, and its loss. The gradient norm comes from
the Trainer's own log (before clipping), so it is known at the steps that are logged: `logging_steps=1` for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hnf_offline.errors import MissingExtraError, UsageError
from hnf_offline.record.flight import FlightRecorder, TakenStep

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingExtraError("transformers", "hf", "the recorder of the Hugging Face Trainer") from None


class FlightRecorderCallback(TrainerCallback):  # type: ignore[misc]
    """Records a Hugging Face Trainer's steps in a black box.

    As a context manager it also freezes when training ends by an exception.

    Attributes:
        box: the black box while training, None before.
    """

    def __init__(self, directory: Path | str, **options: Any) -> None:
        """Set it up; it is switched on when training begins.

        Args:
            directory: as for `FlightRecorder`.
            **options: as for `FlightRecorder`; `model` and `training` are taken from the Trainer and `training` given
                here is added.
        """
        self.box: FlightRecorder | None = None
        self._directory = directory
        self._options = options
        self._hooks: list[Any] = []
        self._open: TakenStep | None = None
        self._losses: list[Tensor] = []
        self._items: Tensor | float | None = None
        self._warned: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Switch the box on, in the first process only.

        Raises:
            UsageError: if the model is compiled: its hooks would not see every pass.
        """
        if not state.is_world_process_zero:
            return
        if getattr(args, "torch_compile", False):
            raise UsageError(
                "the recorder cannot see the batches of a compiled model",
                remedy="train without torch_compile",
            )
        model, optimizer = others["model"], others["optimizer"]
        while hasattr(optimizer, "optimizer"):  # accelerate wraps it
            optimizer = optimizer.optimizer
        options = dict(self._options)
        training = _training(args) | dict(options.pop("training", None) or {})
        config = options.pop("model", None) or _configuration(model)
        self.box = FlightRecorder(
            self._directory,
            model,
            optimizer,
            steps_done=state.global_step,
            model=config,
            training=training,
            **options,
        )
        self._hooks = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Be ready for the first forward pass of a step."""
        self._open, self._losses, self._items = None, [], None

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Note the step: update and schedule are done."""
        if self._open is None:
            return
        taken, self._open = self._open, None
        loss = None
        if self._losses:
            loss = sum(self._losses[1:], self._losses[0])
            # With num_items_in_batch each loss is its share of the mean over all tokens; without, a mean of its own.
            loss = loss / len(self._losses) if self._items is None else loss
        else:
            self._warn("the model returns no loss, so the recorder's log has none")
        # The Trainer's divisor may count labels that no position predicts, so a retraining has to be told.
        others = {} if self._items is None else {"num_items_in_batch": self._items}
        taken.done(loss=loss, **others)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **others: Any
    ) -> None:
        """Take the gradient norm from the Trainer's log."""
        norm = (logs or {}).get("grad_norm")
        if self.box is not None and norm is not None and self.box.steps_done == state.global_step:
            self.box.add_to_last(grad_norm=norm)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Switch the box off."""
        self._end()

    def __enter__(self) -> FlightRecorderCallback:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.box is not None and isinstance(error, Exception):
            self.box.__exit__(kind, error, trace)
        self._end()

    def _before_forward(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.box is None or not module.training:
            return
        tokens = named.get("input_ids", given[0] if given else None)
        if not isinstance(tokens, Tensor):
            self._warn("the model is called without input_ids, so the recorder keeps nothing")
            return
        if self._open is None:
            self._open = self.box.begin()
        self._open.batch(tokens, named.get("labels"), named.get("attention_mask"))
        self._items = named.get("num_items_in_batch")

    def _after_forward(
        self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        if self._open is None or not module.training:
            return
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach().mean())

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=3)

    def _end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.box is not None:
            self.box.close()


def _training(args: Any) -> dict[str, Any]:
    # What a retraining has to know of TrainingArguments; what an older or newer version lacks is left out.
    precision = (
        "bfloat16"
        if getattr(args, "bf16", False)
        else "float16"
        if getattr(args, "fp16", False)
        else "float32"
    )
    found: dict[str, Any] = {"precision": precision}
    for name in (
        "max_grad_norm",
        "gradient_accumulation_steps",
        "per_device_train_batch_size",
        "seed",
        "world_size",
        "label_smoothing_factor",
        "average_tokens_across_devices",
    ):
        value = getattr(args, name, None)
        if isinstance(value, bool | int | float | str):
            found[name] = value
    if not found.get("max_grad_norm"):
        found.pop("max_grad_norm", None)  # 0 is the Trainer's word for no clipping
    return found


def _configuration(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return {}
    import json

    # Only what JSON can say: some configurations hold types and enumerations.
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return plain
