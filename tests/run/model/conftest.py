"""Tiny Hugging Face models, built once a session: importing transformers takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from torch import nn

SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        **SMALL,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 16,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gpt_neox": {"architectures": ["GPTNeoXForCausalLM"], **SMALL, "num_attention_heads": 2},
    "bert": {"architectures": ["BertForMaskedLM"], **SMALL, "num_attention_heads": 2},
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        **SMALL,
        "hidden_size": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": 16,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "falcon": {
        "architectures": ["FalconForCausalLM"],
        "vocab_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
    },
    "mamba": {
        "architectures": ["MambaForCausalLM"],
        "vocab_size": 16,
        "hidden_size": 12,
        "num_hidden_layers": 1,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    },
}


@pytest.fixture(scope="session")
def hugging_face() -> Callable[[str], nn.Module]:
    """Builder of tiny models by model_type, randomly initialised, in eval mode; each is built once."""
    pytest.importorskip("transformers")
    import torch

    from hnf_offline.run.model.build import build_model
    from hnf_offline.run.records import ModelSource

    @cache
    def build(model_type: str) -> nn.Module:
        torch.manual_seed(0)
        source = ModelSource("hf", {"model_type": model_type, **CONFIGS[model_type]})
        return build_model(source, device=torch.device("cpu"), dtype=torch.float32)

    return build
