"""Hugging Face models from a `config.json`, with random weights and never any remote code (extra `hf`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hnf_offline.errors import InputError, MissingExtraError

#: Ending of the architecture name -> the transformers class that builds it.
_HEADS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForPreTraining": "AutoModelForPreTraining",
}


#: Keys that name code: classes of a repository (auto_map), and kernels that are fetched from one.
_CODE = {
    *("auto_map", "_attn_implementation", "attn_implementation", "_attn_implementation_internal"),
    *("experts_implementation", "_experts_implementation", "use_kernels", "kernel_config", "_name_or_path"),
}
_DEEPEST = 8


def build_huggingface(config: Mapping[str, Any]) -> nn.Module:
    """Build a transformers model from its configuration.

    Returns:
        The module, randomly initialised, without a key-value cache.

    Raises:
        MissingExtraError: if transformers is not installed.
        InputError: if the installed transformers does not know the model, or cannot build what is described.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "hf", "a Hugging Face model") from None
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"transformers {transformers.__version__} does not know model_type {model_type!r}",
            remedy="install a newer transformers, or name a factory with --model package.module:function",
        )
    spoken = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its remarks on the settings are not about what is asked here
    try:
        return _build(transformers, model_type, config)
    except Exception as error:  # somebody else's configuration in somebody else's code can fail in any way
        reason = next(
            (line for line in reversed(str(error).split("\n")) if line.strip()), type(error).__name__
        )
        raise InputError(
            f"the configuration describes no {model_type} model: {reason.strip()}",
            remedy="check the model's config.json, or name a factory with --model package.module:function",
        ) from error
    finally:
        transformers.logging.set_verbosity(spoken)


def without_code(config: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Leave out what makes transformers fetch and import code: remote classes, and attention kernels by their name.

    Args:
        config: a configuration, with those of its parts in it.
        depth: how deep this one lies in the whole.

    Returns:
        The rest of it; parts deeper than any configuration has are left out.
    """
    return {
        key: without_code(value, depth + 1) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _CODE and not (isinstance(value, Mapping) and depth > _DEEPEST)
    }


def _build(transformers: Any, model_type: str, config: Mapping[str, Any]) -> nn.Module:
    rest = {key: value for key, value in without_code(config).items() if key != "model_type"}
    settings = transformers.AutoConfig.for_model(model_type, **rest)
    settings.use_cache = False
    architecture = str((config.get("architectures") or ["ForCausalLM"])[0])
    auto = next((name for ending, name in _HEADS.items() if architecture.endswith(ending)), "AutoModel")
    try:
        model = getattr(transformers, auto).from_config(
            settings, attn_implementation="sdpa", trust_remote_code=False
        )
    except ValueError:
        # Some architectures have no sdpa path; their eager attention has all derivatives anyway.
        model = getattr(transformers, auto).from_config(
            settings, attn_implementation="eager", trust_remote_code=False
        )
    _settle_losses(transformers, model)
    return model  # type: ignore[no-any-return]


def _settle_losses(transformers: Any, model: nn.Module) -> None:
    # Classes that transformers has no loss for by their name (GPT2LMHeadModel) get this one anyway, with a line on
    # stderr about `loss_type=None` at the first forward pass, which says nothing of the run.
    known = getattr(transformers.modeling_utils, "LOSS_MAPPING", {})
    for part in model.modules():
        if "ForCausalLM" in known and getattr(part, "loss_type", "") is None:
            part.loss_type = "ForCausalLM"  # type: ignore[assignment]
