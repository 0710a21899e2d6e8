"""The loss of a module on token rows, and the logits it came from, whatever the module returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.errors import InputError

IGNORED = -100
#: Module -> whether its own loss takes each label in its own place.
_IN_PLACE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
#: One reading of the labels is a module's where it misses the module's loss by less than this part of the other's miss.
_CLEAR = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one replayed batch gave.

    Attributes:
        loss: mean cross-entropy, a scalar with its graph.
        logits: of the predicted positions, [positions, vocabulary]; None where the module hides them.
        targets: the correct tokens, [positions]; None where there are no logits.
    """

    loss: Tensor
    logits: Tensor | None
    targets: Tensor | None


def evaluate(module: nn.Module, tokens: Tensor, labels: Tensor | None) -> Outcome:
    """Run a module on rows of tokens.

    The module is called as `module(input_ids=..., labels=...)`, without labels where it takes none. Rows of
    floating-point numbers are its `pixel_values`, or what it calls its main input, in its own precision. The loss is
    its `.loss` or `["loss"]`, or else the cross-entropy of its logits: shifted by one where the labels have the
    shape of the tokens, of the last position where there is one label a row. Labels of -100 do not count.
    Rows of one label more than tokens say what every position predicts, the last one too: labels[t + 1] at t. No
    module takes such rows, so they are not handed to it, and the loss is that of its logits. An encoder-decoder has
    labels of any length, and predicts each in its own place.
    Without gradients, a module's own loss also decides whether its logits are shifted (decoder) or not (masked).

    Args:
        module: any module.
        tokens: [rows, length], int64; or images, [rows, channels, height, width], floating-point.
        labels: [rows, length], [rows, length + 1] or [rows], int64; None where the labels are the tokens.

    Returns:
        The loss and, where the module shows them, the predicted positions' logits.

    Raises:
        InputError: if neither a loss nor logits come back, or an encoder-decoder has no labels.
    """
    wanted = tokens if labels is None else labels
    writes = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
    if writes and labels is None:
        raise InputError(
            "the model is an encoder-decoder, and the batches say nothing of what it is to write",
            remedy="save labels beside input_ids",
        )
    names = inspect.signature(module.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
    arguments: dict[str, Tensor] = {}
    every_position = not writes and wanted.ndim == 2 and wanted.shape[1] == tokens.shape[1] + 1
    if not every_position and ("labels" in names or takes_any):
        arguments["labels"] = wanted
    given = tokens.to(_precision(module)) if tokens.is_floating_point() else tokens
    name = _name_of(module, tokens)
    output = (
        module(**{name: given}, **arguments) if name in names or takes_any else module(given, **arguments)
    )
    loss, logits = _field(output, "loss"), _field(output, "logits")
    if logits is None and isinstance(output, Tensor) and output.ndim >= 2:
        logits = output
    if logits is None and isinstance(output, tuple) and output:
        logits = next((item for item in output if isinstance(item, Tensor) and item.ndim == 3), None)
    if isinstance(output, Tensor) and output.ndim == 0:
        loss = output
    if every_position:
        loss = None
    if logits is None and loss is None:
        raise InputError(
            f"the model returned {type(output).__name__} with "
            + (
                "no logits, and labels for every position need them"
                if every_position
                else "neither a loss nor logits"
            ),
            remedy="let the module return logits, or an object with .loss",
        )
    if logits is None:
        assert loss is not None
        return Outcome(loss, None, None)
    if writes and wanted.ndim == 2:
        # A decoder is fed its labels one position late: it predicts each in its own place.
        positions, targets = _counted(logits.flatten(0, 1), wanted.flatten())
        own = functional.cross_entropy(positions, targets) if loss is None else loss
        return Outcome(own, positions, targets)
    if loss is None:
        positions, targets = predicted(logits, wanted)
        return Outcome(functional.cross_entropy(positions, targets), positions, targets)
    by_position = wanted.ndim == 2 and logits.ndim == 3
    if by_position and not loss.requires_grad and _in_place(module, loss, logits, wanted):
        return Outcome(loss, *_counted(logits.flatten(0, 1), wanted.flatten()))
    return Outcome(loss, *predicted(logits, wanted))


def _name_of(module: nn.Module, rows: Tensor) -> str:
    if not rows.is_floating_point():
        return "input_ids"
    # transformers names the one input that each of its models cannot do without.
    return str(getattr(module, "main_input_name", None) or "pixel_values")


def _precision(module: nn.Module) -> torch.dtype:
    return next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)


def _in_place(module: nn.Module, loss: Tensor, logits: Tensor, labels: Tensor) -> bool:
    """Whether a module's own loss takes each label in its own place, as a masked model, or shifted, as a decoder."""
    known = _IN_PLACE.get(module)
    if known is None:
        shifted, unshifted = (
            float((functional.cross_entropy(*reading).double() - loss.double()).abs())
            for reading in (predicted(logits, labels), _counted(logits.flatten(0, 1), labels.flatten()))
        )
        known = unshifted < shifted
        # What a module does is asked once, as it would be a wait for the device each time; unless the answer is close.
        if min(shifted, unshifted) < _CLEAR * max(shifted, unshifted):
            _IN_PLACE[module] = known
    return known


def predicted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the positions that are predicted and their targets: logits[t] and labels[t + 1].

    Returns:
        Logits [positions, vocabulary] and targets [positions].

    Raises:
        InputError: if the shapes do not fit.
    """
    if logits.ndim == 2 and labels.ndim == 1:
        positions, targets = logits, labels
    elif logits.ndim == 3 and labels.ndim == 1:
        positions, targets = logits[:, -1], labels
    elif logits.ndim == 3 and labels.shape == logits.shape[:2]:
        positions, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    elif logits.ndim == 3 and labels.shape == (logits.shape[0], logits.shape[1] + 1):
        positions, targets = logits.flatten(0, 1), labels[:, 1:].flatten()
    else:
        raise InputError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} do not fit"
        )
    return _counted(positions, targets)


def _counted(positions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    counted = targets != IGNORED
    return (positions, targets) if bool(counted.all()) else (positions[counted], targets[counted])


def _field(output: Any, name: str) -> Tensor | None:
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return value if isinstance(value, Tensor) else None


def count_predicted(tokens: Tensor, labels: Tensor | None) -> int:
    """Count the positions that enter the mean loss: the weight of a micro-batch.

    Returns:
        The number of predicted positions.
    """
    wanted = tokens if labels is None else labels
    return int((wanted if wanted.ndim == 1 else wanted[:, 1:]).ne(IGNORED).sum())


def check_tokens(tokens: Tensor, vocabulary: int | None) -> None:
    """Refuse tokens that the embedding does not have, before an index error or a GPU assertion does.

    Images look nothing up.

    Raises:
        InputError: if a token lies outside the vocabulary.
    """
    if tokens.numel() == 0 or vocabulary is None or tokens.is_floating_point():
        return
    low, high = (int(edge) for edge in torch.aminmax(tokens))
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"token {high if high >= vocabulary else low} in the batches, but the model knows 0..{vocabulary - 1}",
            remedy="give the batches this run was trained on with --replay",
        )
