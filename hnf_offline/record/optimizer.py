"""What an optimizer holds, by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError


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
    steps: dict[str, Tensor | int] = {}
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
                steps[name] = value
            elif isinstance(value, Tensor) and value.shape == parameter.shape:
                tensors[f"{key}.{name}"] = value
    groups = [
        {key: _plain(value) for key, value in group.items() if key != "params" and _is_plain(_plain(value))}
        | {"params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"kind": type(optimizer).__name__, "param_groups": groups, "step": _counts(steps)}


def _counts(steps: Mapping[str, Tensor | int]) -> dict[str, int]:
    # Fused and capturable optimizers count on the device: one transfer a device, not one a parameter.
    counted = {name: int(step) for name, step in steps.items() if not _on_device(step)}
    elsewhere = {name: step for name, step in steps.items() if isinstance(step, Tensor) and _on_device(step)}
    for device in {step.device for step in elsewhere.values()}:
        names = [name for name, step in elsewhere.items() if step.device == device]
        read = torch.stack([elsewhere[name].reshape(()) for name in names]).tolist()
        counted |= {name: int(step) for name, step in zip(names, read, strict=True)}
    return {name: counted[name] for name in steps}


def _on_device(step: Tensor | int) -> bool:
    return isinstance(step, Tensor) and step.device.type != "cpu"


def _plain(value: Any) -> Any:
    # A learning rate may be a tensor, so that a compiled step can read it.
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
