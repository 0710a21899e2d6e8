"""Build a module from its source and put a checkpoint's weights into it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError
from hnf_offline.run.records import ModelSource

#: What wrappers put into names: before all of them (compile, DDP, FSDP), or before those of a wrapped block.
_WRAPPERS = re.compile(
    r"^(?:_orig_mod\.|module\.|_fsdp_wrapped_module\.)+"
    r"|(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def build_model(source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build the module in eval mode, its parameters ready for gradients.

    Returns:
        The module; its weights are arbitrary until `load_weights_into`.

    Raises:
        InputError: if the kind is unknown or the configuration does not describe a model.
    """
    if source.kind == "gpt":
        from hnf_offline.run.model.gpt import GPT, GPTConfig

        module: nn.Module = GPT(GPTConfig.from_mapping(source.config))
    elif source.kind == "hf":
        from hnf_offline.run.model.huggingface import build_huggingface

        module = build_huggingface(source.config)
    elif source.kind == "factory" and source.factory:
        from hnf_offline.run.model.factory import build_from_factory

        module = build_from_factory(source.factory, source.config)
    else:
        raise InputError(
            f"unknown kind of model {source.kind!r}", remedy="use hf, gpt or factory in run.toml"
        )
    module = module.to(device=device, dtype=dtype).eval()
    return module.requires_grad_(True)


def load_weights_into(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into a module, in the module's dtype and device.

    Prefixes of wrappers are stripped. A tied tensor may be absent: it shares the storage of one that is there.

    Raises:
        InputError: if a parameter is absent, or has another shape.
    """
    own = module.state_dict(keep_vars=True)
    stripped = in_names_of(module, weights)
    present = {own[name].data_ptr() for name in own if name in stripped and own[name].numel()}
    persistent = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    absent = [
        name
        for name, tensor in own.items()
        if name in persistent and name not in stripped and tensor.data_ptr() not in present
    ]
    if absent:
        raise InputError(
            f"the checkpoint lacks {len(absent)} parameters of the model, such as {absent[0]}",
            remedy="check that config.json or run.toml describes the model that was trained",
        )
    with torch.no_grad():
        for name, target in own.items():
            if name not in stripped:
                continue
            if target.shape != stripped[name].shape:
                raise InputError(
                    f"{name} has shape {tuple(stripped[name].shape)} in the checkpoint "
                    f"and {tuple(target.shape)} in the model",
                    remedy="check that config.json or run.toml describes the model that was trained",
                )
            target.copy_(stripped[name])


def in_names_of(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint's weights as the module names them.

    Prefixes of wrappers are stripped, and that of a trainer's module that holds the model as an attribute
    (model.*, net.*) where otherwise no name would fit.

    Returns:
        Name -> tensor; names the module does not have are kept.
    """
    stripped = {_WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    if not set(module.state_dict(keep_vars=True)) & set(stripped):
        stripped = _without_common_prefix(stripped)
    return stripped


def _without_common_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefixes = {name.split(".", 1)[0] for name in weights if "." in name}
    if len(prefixes) != 1:
        return dict(weights)
    return {name.split(".", 1)[-1]: tensor for name, tensor in weights.items()}


def vocabulary_size(module: nn.Module) -> int | None:
    """Find how many tokens the module knows: the rows of its first embedding.

    Returns:
        The number, None where there is no embedding.
    """
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            return part.num_embeddings
    return None
