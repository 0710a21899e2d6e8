"""The built-in decoder against an independent forward pass in nanoGPT's layout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hnf_offline.errors import InputError
from hnf_offline.run.model.gpt import GPT, GPTConfig

CONFIG: dict[str, Any] = {
    "vocab_size": 11,
    "block_size": 6,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 8,
    "mlp_width": 12,
}


def reference(weights: dict[str, Tensor], tokens: Tensor, *, heads: int, layers: int, norm: str) -> Tensor:
    """A decoder written out: no module, no attention kernel, no fused loss."""

    def linear(name: str, x: Tensor) -> Tensor:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def normalise(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]
        return scaled + weights[f"{name}.bias"] if f"{name}.bias" in weights else scaled

    def attend(name: str, x: Tensor) -> Tensor:
        length, width = x.shape
        outputs = []
        for q, k, v in zip(
            *(part.split(width // heads, -1) for part in linear(f"{name}.c_attn", x).chunk(3, -1)),
            strict=True,
        ):
            scores = q @ k.T / math.sqrt(width // heads)
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            outputs.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
        return linear(f"{name}.c_proj", torch.cat(outputs, -1))

    def feed_forward(name: str, x: Tensor) -> Tensor:
        hidden = linear(f"{name}.c_fc", x)
        return linear(f"{name}.c_proj", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))

    rows = []
    for row in tokens:
        x = weights["transformer.wte.weight"][row] + weights["transformer.wpe.weight"][: len(row)]
        for block in (f"transformer.h.{i}" for i in range(layers)):
            for branch, name, ln in (
                (attend, f"{block}.attn", f"{block}.ln_1"),
                (feed_forward, f"{block}.mlp", f"{block}.ln_2"),
            ):
                if norm == "pre":
                    x = x + branch(name, normalise(ln, x))
                elif norm == "post":
                    x = normalise(ln, x + branch(name, x))
                else:
                    x = x + branch(name, x)
        x = normalise("transformer.ln_f", x) if norm == "pre" else x
        head = weights.get("lm_head.weight", weights["transformer.wte.weight"])
        rows.append(x @ head.T)
    return torch.stack(rows)


@pytest.mark.parametrize("norm", ["none", "pre", "post"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_decoder_equals_the_written_out_one(norm: str, bias: bool, tied: bool) -> None:
    module = GPT(GPTConfig(**CONFIG, norm=norm, bias=bias, tied=tied)).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in module.parameters():  # norms' gains and biases too, so that every one of them matters
            value.normal_(0.3, 0.5, generator=generator)
    tokens = torch.randint(0, 11, (3, 5), generator=generator)
    weights = {name: value.detach() for name, value in module.named_parameters()}
    expected = reference(weights, tokens, heads=2, layers=2, norm=norm)
    assert torch.allclose(module(tokens), expected, rtol=1e-10, atol=1e-10)


def test_the_names_are_those_of_nanogpt() -> None:
    names = {name for name, _ in GPT(GPTConfig(**CONFIG)).named_parameters()}
    block = {
        f"transformer.h.0.{part}"
        for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for part in (f"{module}.weight", f"{module}.bias")
    }
    assert block <= names
    assert names - {name for name in names if ".h." in name} == {
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    }


def test_a_later_token_changes_no_earlier_prediction() -> None:
    module = GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(0))
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 4] = 3
    before, after = module(tokens), module(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_initial_weights_depend_on_the_generator_alone_and_start_near_log_vocabulary() -> None:
    first, second = (GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(4)) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    tokens = torch.randint(0, 11, (8, 6), generator=torch.Generator().manual_seed(0))
    loss = functional.cross_entropy(first(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(11), abs=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_layer": None}, "lacks n_layer"),
        ({"n_head": None, "n_embd": None}, "lacks n_head, n_embd"),
        ({"n_embd": "wide"}, "n_embd = 'wide'"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"n_layer": 1 << 40}, "n_layer"),
        ({"mlp_width": -1}, "mlp_width = -1"),
        ({"norm": "sandwich"}, "norm = 'sandwich'"),
        ({"n_head": 3}, "not a multiple of n_head = 3"),
    ],
)
def test_a_configuration_that_describes_no_model_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GPTConfig.from_mapping({**CONFIG, **change})


def test_keys_of_the_trainer_are_ignored() -> None:
    config = GPTConfig.from_mapping({**CONFIG, "dropout": 0.1, "model_type": "gpt", "mlp_width": None})
    assert config == GPTConfig(**{**CONFIG, "mlp_width": None})


def test_rows_longer_than_the_model_are_refused_in_words() -> None:
    module = GPT(GPTConfig(**CONFIG))
    with pytest.raises(InputError, match=r"7 tokens.*6"):
        module(torch.zeros(1, 7, dtype=torch.int64))
