"""ZeRO's flat partitions put together: parameters and moments by name, padding left out.

Stages 1 and 2 join the parameters of a group into one vector and cut that into one slice a rank; stage 3 cuts every
parameter by itself. Source: deepspeedai/DeepSpeed@edaa722 deepspeed/utils/zero_to_fp32.py, `_zero2_merge_*` and
`_zero3_merge_*`; the state of the optimizer: runtime/zero/stage_1_and_2.py and stage3.py, `state_dict`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_MASTERS, _MASTERS_3 = "single_partition_of_fp32_groups", "fp32_flat_groups"
_BASE, _BASE_3 = "base_optimizer_state", "optimizer_state_dict"
#: Vectors as long as the weights, of the optimizers that DeepSpeed brings.
_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def masters(shapes: Any, states: Sequence[Any]) -> dict[str, Tensor]:
    """Put the fp32 weights together.

    Args:
        shapes: `param_shapes`: one mapping a group of parameters, name -> shape.
        states: `optimizer_state_dict` of every rank.

    Returns:
        Parameter name -> tensor.

    Raises:
        ValueError: if the partitions are not as long as the parameters.
    """
    groups = _groups(shapes)
    if states[0].get("zero_stage") == 3:
        return _joined_3(groups, [_joined_groups(state[_MASTERS_3]) for state in states])
    pieces = [state[_MASTERS] for state in states]
    if any(len(piece) != len(groups) for piece in pieces):
        raise ValueError(f"{len(groups)} groups of parameters, {[len(piece) for piece in pieces]} of weights")
    whole: dict[str, Tensor] = {}
    for position, group in enumerate(groups):
        whole |= _joined(group, [piece[position] for piece in pieces])
    return whole


def frozen(models: Sequence[Mapping[str, Any]], ranks: int) -> dict[str, Tensor]:
    """Put the parameters together that were not trained: whole in stages 1 and 2, in parts in stage 3.

    Args:
        models: the contents of the model files.
        ranks: how many parts stage 3 made.

    Returns:
        Parameter name -> tensor.

    Raises:
        ValueError: if a part is missing.
    """
    import torch

    shapes = models[0].get("frozen_param_shapes") or {}
    parts = [model.get("frozen_param_fragments") or {} for model in models]
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        size = _numel(shape)
        if len(parts) == 1 and parts[0][name].numel() == size:
            found[name] = parts[0][name].view(*shape)
            continue
        if len(parts) != ranks:
            raise ValueError(f"{len(parts)} of {ranks} parts of {name}")
        found[name] = torch.cat([part[name].reshape(-1) for part in parts])[:size].view(*shape)
    return found


def moments(shapes: Any, states: Sequence[Any]) -> dict[str, Any] | None:
    """Put the optimizer's state together, as torch's optimizers save it but by parameter name.

    Args:
        shapes: `param_shapes`.
        states: `optimizer_state_dict` of every rank.

    Returns:
        `state` and `param_groups`; None where none was saved.

    Raises:
        ValueError: if the vectors are not as long as the parameters.
    """
    groups = _groups(shapes)
    third = states[0].get("zero_stage") == 3
    bases = [state.get(_BASE_3 if third else _BASE) for state in states]
    if not all(bases):
        return None
    vectors = [_numbered(base) for base in bases]
    named = list(settings(states[0]))
    state: dict[str, dict[str, Any]] = {}
    members = _members(groups, named)
    own = [{name: shape for group in groups for name, shape in group.items()}] if third else groups
    for position, group in enumerate(own):
        mine = [list(rank.values()) if third else [rank[position]] for rank in vectors]
        for key in _MOMENTS:
            if key in mine[0][0]:
                pieces = [_joined_groups([one[key] for one in rank]) for rank in mine]
                joined = _joined_3([group], pieces) if third else _joined(group, pieces)
                for name, tensor in joined.items():
                    state.setdefault(name, {})[key] = tensor
        step = mine[0][0].get("step", named[position].get("step") if position < len(named) else None)
        for name in group:
            if step is not None:
                state.setdefault(name, {})["step"] = step
    listed = [
        {**{k: v for k, v in (named[at] if at < len(named) else {}).items() if k != "step"}, "params": names}
        for at, names in enumerate(members)
    ]
    return {"state": state, "param_groups": listed}


def has_moments(state: Any) -> bool:
    """Tell whether a rank saved the state of the optimizer.

    Returns:
        False where it was left out or removed.
    """
    return isinstance(state, Mapping) and bool(state.get(_BASE_3 if state.get("zero_stage") == 3 else _BASE))


def settings(state: Any) -> Iterator[dict[str, Any]]:
    """Read the settings of the groups of parameters.

    Args:
        state: `optimizer_state_dict` of a rank, or a plain optimizer's state_dict.

    Yields:
        The settings of a group.
    """
    if not isinstance(state, Mapping):
        return
    base = next((state[key] for key in (_BASE, _BASE_3) if state.get(key)), state)
    groups = base.get("param_groups") if isinstance(base, Mapping) else None
    for group in groups if isinstance(groups, list) else state.get("param_groups") or ():
        if isinstance(group, Mapping):
            yield {str(key): value for key, value in group.items()}


def _groups(shapes: Any) -> list[Mapping[str, Any]]:
    groups = [shapes] if isinstance(shapes, Mapping) else list(shapes)
    if not all(isinstance(group, Mapping) for group in groups):
        raise ValueError("param_shapes are no shapes")
    return groups


def _numbered(base: Any) -> dict[int, Mapping[str, Any]]:
    # A torch optimizer's state by number, or (elastic checkpoints) a list of what has no padding.
    if isinstance(base, Mapping):
        return {int(key): base["state"][key] for key in sorted(base["state"], key=int)}
    return dict(enumerate(base))


def _joined(group: Mapping[str, Any], pieces: Sequence[Tensor]) -> dict[str, Tensor]:
    import torch

    vector = torch.cat([piece.reshape(-1) for piece in pieces])
    # Ranks pad to a multiple of twice their number, or leave the padding out: as zero_to_fp32.py checks it.
    align = 2 * len(pieces)
    needed = sum(_numel(shape) for shape in group.values())
    if needed > vector.numel() or math.ceil(needed / align) != math.ceil(vector.numel() / align):
        raise ValueError(f"{vector.numel()} numbers for {needed} of the parameters")
    found: dict[str, Tensor] = {}
    offset = 0
    for name, shape in group.items():
        size = _numel(shape)
        found[str(name)] = vector.narrow(0, offset, size).view(*shape)
        offset += size
    return found


def _joined_3(groups: Sequence[Mapping[str, Any]], pieces: Sequence[Tensor]) -> dict[str, Tensor]:
    import torch

    ranks = len(pieces)
    shapes = {str(name): shape for group in groups for name, shape in group.items()}
    needed = sum(math.ceil(_numel(shape) / ranks) for shape in shapes.values())
    if any(piece.numel() != needed for piece in pieces):
        raise ValueError(f"{[piece.numel() for piece in pieces]} numbers, {needed} of the parameters a rank")
    found: dict[str, Tensor] = {}
    offset = 0
    for name, shape in shapes.items():
        part = math.ceil(_numel(shape) / ranks)
        whole = torch.cat([piece.narrow(0, offset, part) for piece in pieces])
        found[name] = whole[: _numel(shape)].view(*shape)
        offset += part
    return found


def _joined_groups(parts: Sequence[Tensor]) -> Tensor:
    import torch

    return torch.cat([part.reshape(-1) for part in parts])


def _members(groups: Sequence[Mapping[str, Any]], named: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    # Which parameters share settings. Stage 3 cuts groups into sub-groups, whose numbers the settings list.
    names = [[str(name) for name in group] for group in groups]
    listed = [group.get("params") for group in named]
    flat = [number for one in listed if isinstance(one, list) for number in one]
    if flat == list(range(len(groups))):
        return [[name for number in one or () for name in names[number]] for one in listed]
    return names if len(named) == len(groups) else [[name for group in names for name in group]]


def _numel(shape: Any) -> int:
    size = math.prod(shape)
    if type(size) is not int or size < 0:
        raise ValueError("a shape is none")
    return size
