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
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForPreTraining": "AutoModelForPreTraining",
}


def build_huggingface(config: Mapping[str, Any]) -> nn.Module:
    """Build a transformers model from its configuration.

    Returns:
        The module, randomly initialised, without a key-value cache.

    Raises:
        MissingExtraError: if transformers is not installed.
        InputError: if the installed transformers does not know the model.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "hf", "a Hugging Face model") from None
    model_type = config.get("model_type")
    rest = {key: value for key, value in config.items() if key not in {"model_type", "auto_map"}}
    try:
        settings = transformers.AutoConfig.for_model(model_type, **rest)
    except ValueError:
        raise InputError(
            f"transformers {transformers.__version__} does not know model_type {model_type!r}",
            remedy="install a newer transformers, or name a factory with --model package.module:function",
        ) from None
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
    return model  # type: ignore[no-any-return]
