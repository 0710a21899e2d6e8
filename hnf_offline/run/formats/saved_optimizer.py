"""The state_dict of an optimizer as any trainer saved it: checked, several made one, names put to numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.errors import InputError

if TYPE_CHECKING:
    from hnf_offline.run.optimizer import RawOptimizer

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")
_NUMBERS = ("lr", "eps", "weight_decay", "momentum", "dampening")
_REMEDY = "save optimizer.state_dict() as torch gives it, or remove it"


def raw_optimizer(content: Any, path: Path, kind: str | None = None) -> RawOptimizer:
    """Read an optimizer's state_dict.

    Parameter names that torch >= 2.6 and OLMo keep in `param_names` turn numbered states into named ones. What
    cannot be a moment, a step or a setting is left out.

    Args:
        content: `{"state": ..., "param_groups": ...}`.
        path: the file, for error messages.
        kind: the optimizer's class name, where the file says it.

    Returns:
        The state as saved.

    Raises:
        InputError: when it is not an optimizer's state_dict.
    """
    from hnf_offline.run.optimizer import RawOptimizer

    try:
        groups = tuple(_group(group) for group in content["param_groups"])
        state = {key: _state(one) for key, one in content["state"].items()}
        positions = [position for group in groups for position in group["params"]]
        names = [name for group in groups for name in group.get("param_names") or ()]
        distinct = len(set(names))
        kinds = {type(key) for key in (*positions, *state)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("is not the state_dict of an optimizer", path=path, remedy=_REMEDY) from error
    if not kinds <= {int, str}:
        raise InputError("is not the state_dict of an optimizer", path=path, remedy=_REMEDY)
    if positions and len(names) == len(positions) == distinct and all(type(name) is str for name in names):
        name_of = dict(zip(positions, names, strict=True))
        state = {name_of.get(key, key): one for key, one in state.items()}
        groups = tuple({**group, "params": list(group["param_names"])} for group in groups)
        return RawOptimizer(kind, groups, state, names=True)
    if len(kinds) > 1:
        raise InputError("names some parameters and numbers others", path=path, remedy=_REMEDY)
    return RawOptimizer(kind, groups, state, names=kinds == {str})


def raw_optimizers(contents: Any, path: Path) -> RawOptimizer:
    """Read the state_dicts of several optimizers of one model as one: the groups of each after those before.

    Args:
        contents: one state_dict, or a sequence of them.
        path: the file, for error messages.

    Returns:
        The state; of kind "other" where the optimizers differ in kind.

    Raises:
        InputError: when one of them is not an optimizer's state_dict.
    """
    from hnf_offline.run.optimizer import RawOptimizer, optimizer_kind

    if isinstance(contents, Mapping):
        return raw_optimizer(contents, path)
    if not isinstance(contents, Sequence) or isinstance(contents, str) or not contents:
        raise InputError("is not the state_dict of an optimizer", path=path, remedy=_REMEDY)
    parts = [raw_optimizer(one, path) for one in contents]
    if len(parts) == 1:
        return parts[0]
    if len({part.names for part in parts}) > 1:
        raise InputError("names some parameters and numbers others", path=path, remedy=_REMEDY)
    groups: list[Mapping[str, Any]] = []
    state: dict[int | str, Mapping[str, Any]] = {}
    for part in parts:
        # Each optimizer counts its parameters from 0.
        after = 0 if part.names else sum(len(group["params"]) for group in groups)
        moved = {key: key if isinstance(key, str) else key + after for key in part.state}
        groups += [
            {**group, "params": [key if isinstance(key, str) else key + after for key in group["params"]]}
            for group in part.groups
        ]
        state |= {moved[key]: one for key, one in part.state.items()}
    kinds = {optimizer_kind(part) for part in parts}
    return RawOptimizer(None if len(kinds) == 1 else "other", tuple(groups), state, names=parts[0].names)


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(group)
    found["params"] = list(found["params"])
    for key in _NUMBERS:
        if key in found and not _is_number(found[key]):
            del found[key]
    betas = found.get("betas")
    if betas is not None:
        pair = list(betas) if isinstance(betas, list | tuple) else []
        if len(pair) < 2 or not all(_is_number(beta) for beta in pair):
            del found["betas"]
    return found


def _state(state: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    found = dict(state)
    for key in _MOMENTS:
        moment = found.get(key)
        if moment is not None and not (
            isinstance(moment, torch.Tensor)
            and moment.layout == torch.strided
            and moment.device.type == "cpu"
            and moment.numel() * moment.element_size() <= moment.untyped_storage().nbytes()
        ):
            del found[key]
    if "step" in found and not (_is_number(found["step"]) and math.isfinite(float(found["step"]))):
        del found["step"]
    return found


def _is_number(value: Any) -> bool:
    import torch

    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and value.device.type == "cpu" and not value.is_complex()
    if isinstance(value, int):
        return value.bit_length() < 1000
    return isinstance(value, float)
