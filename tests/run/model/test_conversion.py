"""Experts that transformers saves one by one and trains as one tensor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hnf_offline.check.optimizer_state import look
from hnf_offline.errors import InputError
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.model.huggingface import build_huggingface

CONFIG = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 16, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_local_experts": 11, "num_experts_per_tok": 2, "max_position_embeddings": 16,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A mixture of eleven experts (so that 10 comes after 2), and its weights as transformers saves them."""
    pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    module = build_huggingface(CONFIG)
    module.save_pretrained(tmp_path)  # type: ignore[operator]
    return module.eval(), load_file(tmp_path / "model.safetensors")


def test_experts_are_put_together_in_their_order(saved: tuple[Any, dict[str, torch.Tensor]]) -> None:
    module, weights = saved
    assert set(weights) - set(module.state_dict()), (
        "transformers saves this model as it holds it: choose another"
    )
    torch.manual_seed(1)
    other = build_huggingface(CONFIG).eval()
    load_weights_into(other, {f"module.{name}": tensor for name, tensor in weights.items()})
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    tokens = torch.arange(8)[None]
    assert torch.equal(module(tokens).logits, other(tokens).logits)


def test_a_missing_expert_is_told(saved: tuple[Any, dict[str, torch.Tensor]]) -> None:
    module, weights = saved
    del weights[next(name for name in weights if ".experts.10." in name)]
    with pytest.raises(InputError):
        load_weights_into(module, weights)


def test_moments_of_experts_are_no_fault(saved: tuple[Any, dict[str, torch.Tensor]]) -> None:
    module, weights = saved
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    moments = {k: tuple(one.shape) for k, one in enumerate(module.parameters())}

    def told(moments: dict[int, tuple[int, ...]]) -> int:
        optimizer = SimpleNamespace(
            names=False,
            step=3,
            moments={
                key: SimpleNamespace(shape=shape, digest=str(key), zero=False)
                for key, shape in moments.items()
            },
        )
        tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
        checkpoint = SimpleNamespace(optimizer_files=())
        portrait = SimpleNamespace(step=3, tensors=tensors, optimizer=optimizer, checkpoint=checkpoint)
        series: Any = SimpleNamespace(portraits=[portrait], path_of=str)
        return len(look(series).faults)

    assert told(moments) == 0
    assert told(moments | {0: (17, 8)}) == 1
