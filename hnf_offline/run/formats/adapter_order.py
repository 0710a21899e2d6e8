"""The order of an adapter's tensors in the model it was trained in, which safetensors files do not keep.

Optimizer states are numbered in that order. Layers are numbered, and within a layer the common transformer families
define their parts in a known order; where a part is of no known family, the order is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Parts of one module in the order in which the model defines them (transformers 5.23 models/*/modeling_*.py).
_FAMILIES: tuple[tuple[str, ...], ...] = (
    # Llama, Mistral, Qwen, Gemma, Phi, Cohere, OLMo.
    ("self_attn", "mlp"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "dense"),
    ("qkv_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("fc1", "fc2"),
    # GPT-2.
    ("attn", "mlp"),
    ("attn", "crossattention", "mlp"),
    ("c_attn", "c_proj"),
    ("c_fc", "c_proj"),
    # GPT-NeoX, Falcon, BLOOM.
    ("attention", "mlp"),
    ("self_attention", "mlp"),
    ("query_key_value", "dense"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    # BERT, RoBERTa, ViT.
    ("attention", "intermediate", "output"),
    ("self", "output"),
    ("query", "key", "value"),
    # T5.
    ("encoder", "decoder"),
    ("SelfAttention", "EncDecAttention", "DenseReluDense"),
    ("q", "k", "v", "o"),
    ("wi", "wo"),
    ("wi_0", "wi_1", "wo"),
    # Heads and embeddings.
    ("embed_tokens", "layers"),
    ("wte", "wpe", "h"),
    ("model", "lm_head"),
    ("model", "score"),
    ("transformer", "lm_head"),
    ("transformer", "score"),
    ("roberta", "classifier"),
    ("bert", "classifier"),
    # PEFT's own parts of one layer (peft 0.21 tuners/lora/layer.py, LoraLayer.__init__).
    ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    ("weight", "bias"),
)
#: BART, OPT and their kin, known by where their layers are, define keys before queries.
_KEYS_FIRST = re.compile(r"\.(?:decoder|encoder)\.layers\.\d+\.")
_KEYS_FIRST_PARTS = ("k_proj", "v_proj", "q_proj", "out_proj")


def in_order_of_modules(names: Iterable[str]) -> list[str]:
    """Sort an adapter's tensors as the model's modules are.

    Args:
        names: tensor names.

    Returns:
        The names; parts whose order is not known are by alphabet.
    """
    return [name for name, _ in _sorted(names)]


def is_order_known(names: Iterable[str]) -> bool:
    """Tell whether the order of the modules follows from the names.

    Args:
        names: tensor names.

    Returns:
        False where a module has parts of no known family.
    """
    return all(known for _, known in _sorted(names))


def _sorted(names: Iterable[str]) -> list[tuple[str, bool]]:
    names = sorted(names)
    children: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts):
            own = children.setdefault(".".join(parts[:depth]), [])
            if not own or own[-1] != part:
                own.append(part)
    order: dict[str, tuple[list[str], bool]] = {}
    for parent, found in children.items():
        order[parent] = _order(parent, sorted(set(found)))

    def place(name: str) -> tuple[int, ...]:
        parts = name.split(".")
        return tuple(order[".".join(parts[:depth])][0].index(part) for depth, part in enumerate(parts))

    known = all(decided for _, decided in order.values())
    return [(name, known) for name in sorted(names, key=place)]


def _order(parent: str, parts: list[str]) -> tuple[list[str], bool]:
    if len(parts) == 1:
        return parts, True
    if all(part.isdecimal() for part in parts):
        return sorted(parts, key=int), True
    families = _FAMILIES
    if _KEYS_FIRST.search(f".{parent}."):
        families = (_KEYS_FIRST_PARTS, ("self_attn", "encoder_attn", "fc1", "fc2"))
    for family in families:
        if set(parts) <= set(family):
            return sorted(parts, key=family.index), True
    return parts, False
