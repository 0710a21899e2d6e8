"""Hugging Face models from a configuration that someone else wrote."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hnf_offline.errors import InputError, MissingExtraError
from hnf_offline.run.model.huggingface import build_huggingface


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel"), ("bert", "BertForMaskedLM")],
)
def test_the_architecture_that_was_trained_is_built(
    hugging_face: Callable[[str], nn.Module], model_type: str, class_name: str
) -> None:
    module = hugging_face(model_type)
    assert type(module).__name__ == class_name
    assert not module.config.use_cache


def test_code_that_a_configuration_names_is_never_run(tmp_path: Any) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = {
        "model_type": "llama",
        "auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"},
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 5,
        "_name_or_path": str(tmp_path),
    }
    assert type(build_huggingface(config)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("model_type", ["no_such_model", None, 3])
def test_an_unknown_model_type_is_named_with_a_remedy(model_type: Any) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="does not know model_type") as error:
        build_huggingface({"model_type": model_type})
    assert "--model" in str(error.value.remedy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -8},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"num_hidden_layers": "two"},
        {"architectures": "LlamaForCausalLM"},
        {"hidden_act": "no such function"},
    ],
    ids=str,
)
def test_a_configuration_that_describes_no_model_is_an_input_error_or_a_model(wrong: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 5,
    }
    try:
        module = build_huggingface(config | wrong)
    except InputError as error:
        assert "llama" in str(error)
    else:
        assert isinstance(module, nn.Module)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"hnf_offline\[hf\]"):
        build_huggingface({"model_type": "llama"})


def test_the_default_loss_is_taken_without_a_word_and_is_the_same() -> None:
    transformers = pytest.importorskip("transformers")
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 7, "n_positions": 6}
    config = {**config, "architectures": ["GPT2LMHeadModel"], "bos_token_id": 0, "eos_token_id": 0}
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    tokens = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(0))
    transformers.logging.add_handler(handler)
    try:
        for heard in (False, True):
            transformers.utils.logging.warning_once.cache_clear()
            module = build_huggingface(config)
            if heard:
                module.loss_type = None  # type: ignore[assignment]
            outcome = module(input_ids=tokens, labels=tokens)
            expected = functional.cross_entropy(outcome.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-5)
            assert any("loss_type=None" in line for line in lines) == heard
    finally:
        transformers.logging.remove_handler(handler)
