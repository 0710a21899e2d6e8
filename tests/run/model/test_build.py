"""A checkpoint's names fit the module under every usual wrapper, or the error names what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError
from hnf_offline.run.model.build import build_model, load_weights_into, vocabulary_size
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.records import ModelSource

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {"vocab_size": 7, "block_size": 4, "n_layer": 1, "n_head": 2, "n_embd": 8}


def gpt(seed: int) -> GPT:
    return GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(seed))


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def assert_same_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, value in module.named_parameters():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize(
    "prefix",
    ["", "_orig_mod.", "module.", "module._orig_mod.", "_fsdp_wrapped_module.", "model.", "net."],
)
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    saved = parameters(gpt(1))
    module = gpt(2)
    load_weights_into(module, {f"{prefix}{name}": value for name, value in saved.items()})
    assert_same_weights(module, saved)


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module._orig_mod"]
)
def test_wrappers_of_single_blocks_are_taken_off(wrapper: str) -> None:
    saved = parameters(gpt(1))
    module = gpt(2)
    load_weights_into(
        module, {name.replace(".h.0.", f".h.0.{wrapper}."): value for name, value in saved.items()}
    )
    assert_same_weights(module, saved)


def test_a_model_whose_own_names_begin_like_a_wrapper_keeps_them(
    hugging_face: Callable[[str], nn.Module],
) -> None:
    # Llama's own names begin with "model.".
    module = hugging_face("llama")
    saved = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    original = parameters(module)
    try:
        load_weights_into(module, saved)
        assert_same_weights(module, saved)
        load_weights_into(module, {f"module.{name}": value for name, value in original.items()})
        assert_same_weights(module, original)
    finally:
        load_weights_into(module, original)


def test_a_tied_weight_may_be_absent_or_saved_twice() -> None:
    saved = parameters(gpt(1))
    assert "lm_head.weight" not in saved
    module = gpt(2)
    load_weights_into(module, saved)
    assert torch.equal(module.lm_head.weight, saved["transformer.wte.weight"])
    module = gpt(2)
    load_weights_into(module, {**saved, "lm_head.weight": saved["transformer.wte.weight"]})
    assert_same_weights(module, saved)
    # Only the other name was saved.
    module = gpt(2)
    renamed = dict(saved)
    renamed["lm_head.weight"] = renamed.pop("transformer.wte.weight")
    load_weights_into(module, renamed)
    assert_same_weights(module, saved)


def test_what_the_checkpoint_has_besides_does_not_matter() -> None:
    saved = parameters(gpt(1))
    module = gpt(2)
    load_weights_into(module, {**saved, "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)})
    assert_same_weights(module, saved)


def test_low_precision_weights_arrive_in_the_precision_of_the_replay() -> None:
    saved = {name: value.bfloat16() for name, value in parameters(gpt(1)).items()}
    module = gpt(2).double()
    load_weights_into(module, saved)
    assert_same_weights(module, {name: value.double() for name, value in saved.items()})


def test_a_missing_parameter_is_named() -> None:
    saved = parameters(gpt(1))
    del saved["transformer.h.0.mlp.c_fc.weight"]
    with pytest.raises(
        InputError, match=r"lacks 1 parameters .*transformer\.h\.0\.mlp\.c_fc\.weight"
    ) as error:
        load_weights_into(gpt(2), saved)
    assert error.value.remedy


def test_a_missing_tied_weight_is_not_excused_by_the_tie() -> None:
    saved = parameters(gpt(1))
    del saved["transformer.wte.weight"]
    with pytest.raises(InputError, match=r"transformer\.wte\.weight"):
        load_weights_into(gpt(2), saved)


def test_a_parameter_of_another_shape_is_named_with_both_shapes() -> None:
    saved = parameters(gpt(1))
    saved["transformer.wpe.weight"] = torch.zeros(5, 8)
    with pytest.raises(InputError, match=r"transformer\.wpe\.weight has shape \(5, 8\).*\(4, 8\)"):
        load_weights_into(gpt(2), saved)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(InputError, match="lacks"):
        load_weights_into(gpt(2), {"model.layers.0.weight": torch.zeros(2, 2)})


def test_a_built_model_is_ready_for_derivatives() -> None:
    module = build_model(ModelSource("gpt", CONFIG), device=CPU, dtype=torch.float64)
    assert not module.training
    assert {value.dtype for value in module.parameters()} == {torch.float64}
    assert all(value.requires_grad for value in module.parameters())
    assert vocabulary_size(module) == 7
    assert vocabulary_size(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("kind", ["jax", "factory"])
def test_an_unknown_kind_is_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(InputError, match="unknown kind of model") as error:
        build_model(ModelSource(kind, {}), device=CPU, dtype=torch.float32)
    assert "gpt" in str(error.value.remedy)
