"""What every library test asks: weights and optimizer state on disk are those of the live objects, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hnf_offline.run import load_optimizer, load_weights, match_optimizer
from hnf_offline.run.model.build import in_names_of, load_weights_into
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.run.records import Checkpoint, OptimizerSettings

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 32, "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 64, "n_positions": 32, "n_embd": 16,
    "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """The parameters as they are now."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors as they are now, by parameter name."""
    return {
        name: {
            key: value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
            for key, value in optimizer.state[parameter].items()
            if value is not None
        }
        for name, parameter in module.named_parameters()
        if parameter in optimizer.state
    }


def check_weights(checkpoint: Checkpoint, module: nn.Module, live: Mapping[str, Tensor]) -> None:
    """The weights that are read are those of `live`, under its names once the module has them."""
    read = in_names_of(module, load_weights(checkpoint))
    lacking = set(live) - set(read)
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - set(live)
    assert lacking <= tied
    for name in set(live) & set(read):
        assert read[name].dtype == live[name].dtype and torch.equal(read[name], live[name]), name
    for parameter in module.parameters():
        parameter.data.zero_()
    load_weights_into(module, load_weights(checkpoint))
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, live[name]), name


def matched(checkpoint: Checkpoint, named: Mapping[str, Tensor]) -> OptimizerState:
    """The optimizer's state by parameter name, as a profile gets it."""
    raw = load_optimizer(checkpoint)
    assert raw is not None
    shapes = [(name, tuple(value.shape)) for name, value in named.items()]
    return match_optimizer(raw, shapes, OptimizerSettings(), Path(checkpoint.path))


def check_optimizer(
    checkpoint: Checkpoint, named: Mapping[str, Tensor], live: Mapping[str, Mapping[str, Tensor]], kind: str
) -> OptimizerState:
    """The state that is read belongs to the right parameters and is that of the live optimizer."""
    state = matched(checkpoint, named)
    assert state.kind == kind
    assert live and set(live) == set(state.parameters)
    for name, theirs in live.items():
        own = state.parameters[name]
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            value = getattr(own, key)
            assert (value is None) == (key not in theirs), (name, key)
            assert value is None or torch.equal(value, theirs[key]), (name, key)
        if "step" in theirs:
            assert own.step == int(theirs["step"])
    return state
