"""Rows of a projection: read and scaled in place, whatever way its layer stores them."""

from __future__ import annotations

import torch
from torch import nn

from hnf_offline.rerun.rows import rows_of
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import Layer, layers_of


def layer_of(module: nn.Module, path: str) -> Layer:
    return next(layer for layer in layers_of(module) if layer.path == path)


def test_one_role_of_a_fused_projection() -> None:
    module = GPT(GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=2, n_embd=4)).initialise()
    fused = module.get_submodule("transformer.h.0.attn.c_attn")
    assert isinstance(fused, nn.Linear)
    before = fused.weight.detach().clone()
    weight, bias = rows_of(module, layer_of(module, "transformer.h.0.attn.c_attn.key"))
    assert torch.equal(weight.read(), before[4:8])
    assert (weight.count, bias.count) == (4, 4)
    weight.scale(torch.tensor([2.0, 1.0, 1.0, 3.0]))
    expected = before.clone()
    expected[4] *= 2
    expected[7] *= 3
    assert torch.equal(fused.weight, expected)
    with torch.no_grad():
        fused.bias.fill_(1.0)
    bias.scale(torch.tensor(5.0))
    assert fused.bias.tolist() == [1.0] * 4 + [5.0] * 4 + [1.0] * 4


class Conv1D(nn.Module):
    """As GPT-2 stores it: [inputs, outputs]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(2, 6))
        self.bias = nn.Parameter(torch.ones(6))


def test_outputs_that_stand_last() -> None:
    module = nn.Module()
    module.attn = nn.Module()
    module.attn.c_attn = Conv1D()
    weight, _ = rows_of(module, layer_of(module, "attn.c_attn.value"))
    assert torch.equal(weight.read(), torch.tensor([[4.0, 10.0], [5.0, 11.0]]))
    weight.scale(torch.tensor([10.0, 0.0]))
    assert module.attn.c_attn.weight.tolist() == [[0, 1, 2, 3, 40, 0], [6, 7, 8, 9, 100, 0]]


def test_a_frozen_weight_is_not_offered() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].weight.requires_grad_(False)
    (bias,) = rows_of(module, layer_of(module, "0"))
    assert bias.parameter is module[0].bias
