"""A frozen transformers model with LoRA adapters on it, put together by PEFT (extra `peft`)."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError, MissingExtraError
from hnf_offline.run import formats
from hnf_offline.run.formats import safetensors_file
from hnf_offline.run.model.build import check_size, in_names_of, load_weights_into
from hnf_offline.run.model.frozen import ADAPTER, PREFIX, freeze_untrained
from hnf_offline.run.model.huggingface import build_huggingface
from hnf_offline.run.records import AdapterSource, ModelSource

_REMEDY = 'name the model that it was trained on: [model] base = "FOLDER" in run.toml'
#: First of the two factors of a layer's adapter, of linear and convolution layers and of embeddings.
_FIRST = re.compile(r"(.+)\.(?:lora_A\.weight|lora_embedding_A)")
#: Tasks that put another head on the model than it was saved with, and the last layer of that head.
_HEADS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_LAST = re.compile(r"(?:^|\.)(?:score|classifier|classifier\.out_proj|out_proj)\.weight$")
#: A model may hold parameters that its files do not, such as a new head.
_SMALL_MODEL = 10_000_000


def build_adapted(source: ModelSource, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Build the frozen model, load its weights, and add the adapters that a checkpoint has.

    The module's parameters are those that were trained: adapters, and modules saved as a whole. The frozen weights are
    buffers of it.

    Args:
        source: of kind "adapter".
        device: where to.
        dtype: type of parameters and frozen weights.

    Returns:
        The module in eval mode; the adapters are arbitrary until `load_weights_into`.

    Raises:
        MissingExtraError: if PEFT is not installed.
        InputError: if the model's files or the adapter's do not fit together.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "peft", "the replay of an adapter") from None
    adapter = source.adapter
    assert adapter is not None
    saved = {
        name.removeprefix(PREFIX): value for name, value in formats.load_weights(adapter.checkpoint).items()
    }
    config = _with_head(source.config, adapter.settings, saved)
    size = sum(file.stat().st_size for file in adapter.base_files)
    check_size(ModelSource("hf", config), 2 * size + _SMALL_MODEL)
    module: Any = build_huggingface(config).to(dtype).eval()
    if (
        adapter.settings.get("task_type") == "SEQ_CLS"
        and getattr(module.config, "pad_token_id", None) is None
    ):
        # Set by the training script, if at all. Replayed rows are whole, and -1 is no token of theirs: the last counts.
        module.config.pad_token_id = -1
    _load_base(module, adapter, saved)
    _add_tokens(module, saved)
    settings = _settings(peft, module, adapter, saved)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its remarks on the settings are not about what is asked here
            peft.get_peft_model(module, settings, adapter_name=ADAPTER)  # changes the module in place
    except Exception as error:  # somebody else's settings in somebody else's code can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise InputError(
            f"the adapter does not fit the model it is to be put on: {reason}",
            path=adapter.checkpoint.path,
            remedy=_REMEDY,
        ) from error
    adapted: nn.Module = module.to(device=device, dtype=dtype).eval()
    freeze_untrained(adapted)
    return adapted


def _load_base(module: nn.Module, adapter: AdapterSource, saved: Mapping[str, Tensor]) -> None:
    weights = in_names_of(module, safetensors_file.load(adapter.base_files))
    for name, own in module.named_parameters():
        if name not in weights and name in saved:
            weights[name] = torch.zeros_like(own)  # a new head, which comes with the adapter
    try:
        load_weights_into(module, weights)
    except InputError as error:
        reason = error.reason.replace("the checkpoint", "the model's file")
        raise InputError(reason, path=adapter.base_files[0].parent, remedy=_REMEDY) from error


def _add_tokens(module: Any, saved: Mapping[str, Tensor]) -> None:
    # Tokens that training added to the vocabulary: PEFT saves the embedding then, and the head with it.
    own = getattr(module.get_input_embeddings(), "weight", None)
    for name, value in module.named_parameters():
        theirs = saved.get(name) if value is own else None
        if theirs is not None and theirs.ndim == 2 and len(theirs) != len(value):
            module.resize_token_embeddings(len(theirs), mean_resizing=False)
            return


def _with_head(
    config: Mapping[str, Any], settings: Mapping[str, Any], saved: Mapping[str, Tensor]
) -> dict[str, Any]:
    # The configuration of the model with the head that the task put on it.
    ending = _HEADS.get(str(settings.get("task_type")))
    if ending is None:
        return dict(config)
    rest = {key: value for key, value in config.items() if key not in {"id2label", "label2id"}}
    labels = [len(value) for name, value in saved.items() if _LAST.search(name) and value.ndim == 2]
    return {**rest, "architectures": [ending], **({"num_labels": labels[-1]} if labels else {})}


def _settings(peft: Any, module: nn.Module, adapter: AdapterSource, saved: Mapping[str, Tensor]) -> Any:
    # Rank and place of every adapter as its tensors have them; the rest as adapter_config.json says.
    said = adapter.settings
    ranks = {
        found[1]: len(value)
        for name, value in saved.items()
        if (found := _FIRST.fullmatch(name)) and value.ndim
    }
    modules = dict(module.named_modules())
    # A rank far beyond the layer's width is no rank, and would only take memory.
    strange = [name for name, rank in ranks.items() if not 0 < rank <= 16 * _width(modules.get(name))]
    if not ranks or strange:
        raise InputError(
            f"it adapts {strange[0]}, and the model it is to be put on has no such layer"
            if strange
            else "holds no LoRA tensors",
            path=adapter.checkpoint.path,
            remedy=_REMEDY,
        )
    alphas = {name: _alpha(name, said, adapter) for name in ranks}
    dropout = _number("lora_dropout", said.get("lora_dropout", 0.0), adapter)
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=min(max(dropout, 0.0), 1.0),  # off in the replay, on where training is repeated
        target_modules=list(ranks),
        rank_pattern={name: value for name, value in ranks.items() if value != rank},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        modules_to_save=list(said.get("modules_to_save") or []) or None,
        use_rslora=bool(said.get("use_rslora")),
        fan_in_fan_out=bool(said.get("fan_in_fan_out")),
    )


def _alpha(module: str, settings: Mapping[str, Any], adapter: AdapterSource) -> float:
    patterns = settings.get("alpha_pattern") or {}
    own = [value for name, value in patterns.items() if _ends_in(module, name)]
    return _number("lora_alpha", own[0] if own else settings.get("lora_alpha", 8), adapter)


def _number(name: str, value: Any, adapter: AdapterSource) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(
            f"{name} = {str(value)[:100]!r} is no number",
            path=adapter.checkpoint.config_file,
            remedy="copy adapter_config.json again",
        )
    return value


def _ends_in(module: str, name: str) -> bool:
    return module == name.removeprefix("^") or module.endswith(f".{name}")


def _width(part: nn.Module | None) -> int:
    weight = getattr(part, "weight", None)
    return max(weight.shape, default=0) if isinstance(weight, Tensor) else 0
