"""Frozen weights below trained adapters: constants of the module, not parameters of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

#: PEFT's names of a wrapped model (peft 0.21 utils/save_and_load.py, get_peft_model_state_dict): what it puts before
#: all names, and the adapter's own name, which it leaves out when it saves.
PREFIX = "base_model.model."
ADAPTER = "default"
_OWN_NAME = re.compile(
    rf"\.modules_to_save\.{ADAPTER}(?=\.)|(?<=\.lora_A)\.{ADAPTER}(?=\.)|(?<=\.lora_B)\.{ADAPTER}(?=\.)"
    rf"|(?<=\.lora_embedding_A)\.{ADAPTER}$|(?<=\.lora_embedding_B)\.{ADAPTER}$"
)
_FROZEN = "_frozen_weights"


def freeze_untrained(module: nn.Module) -> None:
    """Make every parameter without gradient a buffer, so that what goes through parameters sees the trained ones.

    Args:
        module: with `requires_grad` set on what was trained; changed in place.
    """
    for part in module.modules():
        frozen = [
            name
            for name, value in part.named_parameters(recurse=False, remove_duplicate=False)
            if not value.requires_grad
        ]
        for name in frozen:
            value = getattr(part, name).detach()
            delattr(part, name)
            part.register_buffer(name, value)
        setattr(part, _FROZEN, tuple(frozen))


def frozen_weights(module: nn.Module) -> Iterator[Tensor]:
    """Go through the weights that `freeze_untrained` made constants.

    Yields:
        Each tensor, a tied one once a holder.
    """
    for part in module.modules():
        for name in getattr(part, _FROZEN, ()):
            yield part.get_buffer(name)


def is_adapted(module: nn.Module) -> bool:
    """Tell whether a module is a frozen model with adapters.

    Returns:
        True for what `build_adapted` builds.
    """
    return hasattr(module, _FROZEN)


def in_adapted_names(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an adapter's saved tensors as the adapted module names them.

    Args:
        module: what `build_adapted` built.
        weights: name -> tensor, as PEFT saves them.

    Returns:
        Name -> tensor; names the module does not have are kept, without PEFT's prefix.
    """
    own = {_OWN_NAME.sub("", name): name for name, _ in module.named_parameters(remove_duplicate=False)}
    plain = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    return {own.get(name, name): tensor for name, tensor in plain.items()}
