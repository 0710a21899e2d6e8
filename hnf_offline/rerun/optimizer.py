"""Rebuild torch's own optimizer from a saved state, and read the state of a living one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.errors import AmbiguousOptimizerError, InputError
from hnf_offline.run.optimizer import (
    OptimizerState,
    RawOptimizer,
    keys_of_parameters,
    match_optimizer,
    optimizer_kind,
)
from hnf_offline.run.records import OptimizerSettings

_CLASSES: Mapping[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
#: What a saved param_group may say that decides an update; everything else in it is left to torch's defaults.
_DECIDING: Mapping[str, tuple[str, ...]] = {
    "adam": ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "fused"),
    "adamw": ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "fused"),
    "sgd": (
        "lr",
        "momentum",
        "dampening",
        "nesterov",
        "weight_decay",
        "maximize",
        "foreach",
        "fused",
    ),
}
#: Key of a param_group: its learning rate divided by that of the first group, which is the one trainers log.
RATIO = "rate_ratio"


def kinds_of(raw: RawOptimizer, settings: OptimizerSettings) -> tuple[str, ...]:
    """Name the optimizers that a saved state can belong to, the likeliest first.

    Adam and AdamW save the same state; before torch 2.7 nothing in it tells them apart unless weight decay is 0.

    Returns:
        Kinds among "adam", "adamw", "sgd"; empty for any other optimizer.
    """
    kind = settings.kind or optimizer_kind(raw)
    if kind not in _CLASSES:
        return ()
    told = settings.kind is not None or raw.kind is not None
    told = told or any("decoupled_weight_decay" in group for group in raw.groups)
    if kind == "sgd" or told or not any(float(group.get("weight_decay") or 0) for group in raw.groups):
        return (kind,)
    return ("adamw", "adam")


def rebuild_optimizer(
    module: nn.Module,
    raw: RawOptimizer,
    kind: str,
    settings: OptimizerSettings,
    path: Path,
    *,
    fresh: bool = False,
) -> torch.optim.Optimizer:
    """Make torch's optimizer of that kind with the saved groups and state.

    Args:
        module: on its device, with the checkpoint's weights in it.
        raw: the state as saved.
        kind: "adam", "adamw" or "sgd".
        settings: what run.toml says; wins over what was saved.
        path: the file, for error messages.
        fresh: leave the moments out (groups and hyper-parameters only).

    Returns:
        The optimizer, as it was after the update that the checkpoint was saved at.

    Raises:
        AmbiguousOptimizerError: when the state fits the parameters in no way or in more than one.
        InputError: when the optimizer is none that can be rebuilt.
    """
    if kind not in _CLASSES:
        raise InputError(
            "holds the state of an optimizer that cannot be rebuilt",
            path=path,
            remedy="Adam, AdamW and SGD can; name another with [optimizer] kind in run.toml if it is one of them",
        )
    parameters = dict(module.named_parameters())
    named = [(name, tuple(value.shape)) for name, value in parameters.items()]
    key_of = keys_of_parameters(raw, named, path)
    name_of = {key: name for name, key in key_of.items()}
    groups = []
    order: list[str] = []
    relative: list[Mapping[str, Any]] = []
    for group in raw.groups:
        names = [name_of[key] for key in group.get("params", ()) if key in name_of]
        if not names:
            continue
        order += names
        chosen = {key: group[key] for key in _DECIDING[kind] if key in group}
        chosen |= _overrides(kind, settings)
        chosen["lr"] = float(chosen.get("lr", 0.0))
        relative.append(group)
        groups.append({**chosen, "params": [parameters[name] for name in names]})
    if not groups:
        raise AmbiguousOptimizerError("its optimizer state updates no parameter of the model", path=path)
    ratios = _ratios(relative)
    for group, ratio in zip(groups, ratios, strict=True):
        group[RATIO] = ratio
        # A fused or foreach kernel of the run rounds as it did; on another kind of device torch chooses.
        if any(parameter.device.type == "mps" for parameter in group["params"]):
            group.pop("fused", None)
    optimizer = _CLASSES[kind](groups)
    if not fresh:
        state = {
            position: _state(raw.state[key_of[name]])
            for position, name in enumerate(order)
            if raw.state.get(key_of[name])
        }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return optimizer


def _ratios(groups: Sequence[Mapping[str, Any]]) -> list[float]:
    """Divide the groups' saved rates by the first; where a schedule has them at 0, the rates it began with."""
    for key in ("lr", "initial_lr"):
        rates = [float(group.get(key) or 0.0) for group in groups]
        first = next((rate for rate in rates if rate > 0), None)
        if first is not None:
            return [rate / first for rate in rates]
    return [1.0] * len(groups)


def _overrides(kind: str, settings: OptimizerSettings) -> dict[str, Any]:
    chosen: dict[str, Any]
    if kind == "sgd":
        chosen = {"lr": settings.learning_rate, "momentum": settings.momentum, "nesterov": settings.nesterov}
    else:
        chosen = {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}
    chosen["weight_decay"] = getattr(settings, "weight_decay", None)
    return {key: value for key, value in chosen.items() if value is not None}


def _state(saved: Mapping[str, Any]) -> dict[str, Any]:
    # load_state_dict keeps the tensors it is given: without a copy, training would write into the checkpoint's.
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in saved.items()}
    if "step" in state:
        state["step"] = torch.as_tensor(float(state["step"]), dtype=torch.float32)
    return state


def state_of(optimizer: torch.optim.Optimizer, module: nn.Module, kind: str) -> OptimizerState:
    """Read the state of a living optimizer by parameter name, its present learning rates included.

    Returns:
        The state; tensors are the optimizer's own, not copies.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    groups = tuple(
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    )
    state: dict[int | str, Mapping[str, Any]] = {
        names[parameter]: values for parameter, values in optimizer.state.items()
    }
    raw = RawOptimizer(kind, groups, state, names=True)
    named = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    return match_optimizer(raw, named, OptimizerSettings(), Path())
