"""Build a module from its source and put a checkpoint's weights into it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError, UsageError
from hnf_offline.run.model.conversion import as_module_holds
from hnf_offline.run.model.frozen import in_adapted_names, is_adapted
from hnf_offline.run.model.placing import placed
from hnf_offline.run.records import ModelSource

#: What wrappers put into names: before all of them (compile, DDP, FSDP), or before those of a wrapped block.
_WRAPPERS = re.compile(
    r"^(?:_orig_mod\.|module\.|_fsdp_wrapped_module\.)+"
    r"|(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


#: Layers of no model yet; a configuration with more is damaged, or would build for ever.
_MOST_LAYERS = 2_000


def build_model(
    source: ModelSource, *, device: torch.device, dtype: torch.dtype, most_parameters: int | None = None
) -> nn.Module:
    """Build the module in eval mode, its parameters ready for gradients.

    Args:
        source: what to build.
        device: where to.
        dtype: type of its parameters.
        most_parameters: more than the checkpoints can hold; a configuration of a larger model is refused before
            any memory is taken.

    Returns:
        The module; its weights are arbitrary until `load_weights_into`.

    Raises:
        InputError: if the configuration describes no model, or one that the checkpoints cannot hold.
        UsageError: if only the run itself names the function that makes the model.
    """
    if source.kind == "factory" and source.untrusted:
        raise UsageError(
            f"the run's own run.toml names {source.factory} to build the model, and code is run only where you name it",
            remedy=f"if you trust it: --model {source.factory}",
        )
    if source.kind == "adapter":
        from hnf_offline.run.model.adapted import build_adapted

        return build_adapted(source, device=device, dtype=dtype)
    if source.kind in {"gpt", "hf"} and most_parameters is not None:
        check_size(source, most_parameters)
    module = _built(source).to(device=device, dtype=dtype).eval()
    return module.requires_grad_(True)


def check_size(source: ModelSource, most_parameters: int) -> None:
    """Refuse a configuration of a larger model than there can be weights of, before any memory is taken.

    Raises:
        InputError: if it describes one.
    """
    remedy = "check that config.json or run.toml describes the model that was trained"
    for name, value in source.config.items():
        if "layer" in str(name) and isinstance(value, int) and value > _MOST_LAYERS:
            raise InputError(
                f"{name} = {value} in the model configuration is no number of layers", remedy=remedy
            )
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in _built(source).parameters())
    if size > most_parameters:
        raise InputError(
            f"the configuration describes a model of {size:,} parameters, and the checkpoints hold "
            f"at most {most_parameters:,}",
            remedy=remedy,
        )


def _built(source: ModelSource) -> nn.Module:
    if source.kind == "gpt":
        from hnf_offline.run.model.gpt import GPT, GPTConfig

        return GPT(GPTConfig.from_mapping(source.config))
    if source.kind == "hf":
        from hnf_offline.run.model.huggingface import build_huggingface

        return build_huggingface(source.config)
    if source.kind == "factory" and source.factory:
        from hnf_offline.run.model.factory import build_from_factory

        return build_from_factory(source.factory, source.config)
    raise InputError(f"unknown kind of model {source.kind!r}", remedy="use hf, gpt or factory in run.toml")


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
            target.copy_(placed(stripped[name], target.device))


def in_names_of(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint's weights as the module names them.

    Prefixes of wrappers are stripped, and that of a trainer's module that holds the model as an attribute
    (model.*, net.*) where otherwise no name would fit. What transformers saves in other tensors than its module holds
    is put together as it does.

    Returns:
        Name -> tensor; names the module does not have are kept.
    """
    stripped = {_WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}
    if is_adapted(module):
        return in_adapted_names(module, stripped)
    own = set(module.state_dict(keep_vars=True))
    return as_module_holds(module, stripped if own & set(stripped) else _without_prefix(stripped, own))


def _without_prefix(weights: Mapping[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    # The attribute below which most of the module's names are; others, such as metrics, lie beside it.
    fitting: dict[str, int] = {}
    for name in weights:
        prefix, _, rest = name.partition(".")
        fitting[prefix] = fitting.get(prefix, 0) + (rest in own)
    best = max(fitting, key=lambda prefix: fitting[prefix], default="")
    if not fitting.get(best):
        return dict(weights)
    return {name.removeprefix(f"{best}."): tensor for name, tensor in weights.items()}


def vocabulary_size(module: nn.Module) -> int | None:
    """Find how many tokens the module knows: the rows of its first embedding.

    Returns:
        The number, None where there is no embedding.
    """
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            return part.num_embeddings
    return None
