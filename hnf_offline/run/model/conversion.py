"""Weights that transformers saves otherwise than its module holds them, such as experts one by one."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn


def as_module_holds(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, stack and split saved weights as transformers does when it loads a model.

    From version 5 on a mixture of experts holds all experts of a layer in one tensor and saves them one by one, under
    the names of older versions. Which tensors those are is transformers' own knowledge and is asked of it.

    Args:
        module: the module, of transformers or not.
        weights: name -> saved tensor, wrappers' prefixes taken off.

    Returns:
        Name -> tensor; the weights as they are where nothing has to be converted, or where it cannot be done.
    """
    own = module.state_dict(keep_vars=True)
    if not hasattr(module, "config") or all(name in own for name in weights):
        return dict(weights)
    try:
        return _converted(module, weights, own)
    except Exception:  # weights of another model: what they lack is told by who loads them
        return dict(weights)


def _converted(module: Any, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # As convert_and_load_state_dict_in_model of transformers 5.23 (core_model_loading.py), into a dictionary.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(module)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    of_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    gathered: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in sorted(weights.items(), key=lambda item: dot_natural_key(item[0])):
        prefix = getattr(module, "base_model_prefix", None)
        target, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own:
            kept[name] = tensor
        elif pattern is None:
            kept[target] = tensor
        else:
            one = gathered.setdefault(target, deepcopy(of_pattern[pattern]))
            one.add_tensor(target, name, pattern, tensor)
    for target, one in gathered.items():
        for name, value in one.convert(target, model=module, config=module.config).items():
            kept[name] = value[0] if isinstance(value, list) else value
    return kept
