"""Frozen weights are constants of a module: no parameters, but weights in every other respect."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hnf_offline.profile.maps.casting import cast
from hnf_offline.profile.memory import saved_bytes
from hnf_offline.run.model.frozen import freeze_untrained, frozen_weights, in_adapted_names
from hnf_offline.run.model.layers import kind_of, layers_of

WIDTH, VOCABULARY = 64, 16


class Adapted(nn.Module):
    """A frozen linear layer between a trained embedding and a frozen head that is tied to a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.twin = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.twin.weight = self.head.weight
        self.register_buffer("shift", torch.ones(WIDTH))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give logits."""
        hidden = self.middle(self.embed(input_ids)) + self.shift
        return self.head(hidden) + self.twin(hidden)  # type: ignore[no-any-return]


def adapted() -> Adapted:
    torch.manual_seed(0)
    module = Adapted()
    module.requires_grad_(False)
    module.embed.requires_grad_(True)
    return module


def test_only_what_was_trained_is_a_parameter_and_the_function_is_the_same() -> None:
    module, tokens = adapted(), torch.arange(8)[None]
    before = module(tokens)
    names = set(module.state_dict())
    freeze_untrained(module)
    assert [name for name, _ in module.named_parameters()] == ["embed.weight"]
    assert [layer.path for layer in layers_of(module)] == ["embed"]
    assert torch.equal(module(tokens), before) and set(module.state_dict()) == names
    assert sorted(value.numel() for value in frozen_weights(module)) == [64, 1024, 1024, 4096]
    (slope,) = torch.autograd.grad(module(tokens).sum(), module.embed.weight)
    assert float(slope.abs().sum()) > 0


def test_what_a_row_keeps_is_without_the_frozen_weights() -> None:
    tokens = torch.arange(2)[None]
    everything = saved_bytes(adapted().requires_grad_(True), tokens, None)
    module = adapted()
    freeze_untrained(module)
    assert saved_bytes(module, tokens, None) <= everything < 4 * WIDTH * WIDTH


def test_a_cast_is_of_frozen_weights_too_and_not_of_tables() -> None:
    module = adapted()
    freeze_untrained(module)
    held = {name: value.clone() for name, value in module.state_dict().items()}
    with cast(module, torch.bfloat16, buffers=False):
        narrow = {name for name, value in module.state_dict().items() if value.dtype == torch.bfloat16}
        assert narrow == set(held) - {"shift"}
    assert all(torch.equal(value, held[name]) for name, value in module.state_dict().items())


def test_saved_names_are_those_of_the_module_without_the_adapter_s_own() -> None:
    module = nn.Module()
    module.layer = nn.Module()
    module.layer.lora_A = nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)})
    module.layer.lora_embedding_B = nn.ParameterDict({"default": torch.ones(2, 2)})
    module.score = nn.Module()
    module.score.modules_to_save = nn.ModuleDict({"default": nn.Linear(2, 2)})
    saved = {
        "base_model.model.layer.lora_A.weight": "layer.lora_A.default.weight",
        "base_model.model.layer.lora_embedding_B": "layer.lora_embedding_B.default",
        "base_model.model.score.weight": "score.modules_to_save.default.weight",
        "base_model.model.score.bias": "score.modules_to_save.default.bias",
        "base_model.model.other.weight": "other.weight",
    }
    read = in_adapted_names(module, {name: torch.zeros(1) for name in saved})
    assert list(read) == list(saved.values())
    assert kind_of("lm_head.modules_to_save.default", nn.Linear(2, 2)) == "head"
    assert kind_of("q_proj.lora_A.default", nn.Linear(2, 2)) == "other"  # no head has rows of it
