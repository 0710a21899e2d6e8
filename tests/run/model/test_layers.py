"""Every parameter in exactly one layer, named for what it does; fused projections split where the model splits them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import Layer, blocks_of, depth_within, layers_of
from hnf_offline.table import KINDS

HUGGING_FACE = ["llama", "gpt2", "gpt_neox", "bert", "phi3", "falcon", "mamba"]


def kinds(module: nn.Module) -> dict[str, str]:
    return {layer.path: layer.kind for layer in layers_of(module)}


def layer_at(module: nn.Module, path: str) -> Layer:
    return next(layer for layer in layers_of(module) if layer.path == path)


def assert_every_parameter_is_in_exactly_one_layer(module: nn.Module) -> None:
    layers = layers_of(module)
    for name, value in module.named_parameters():
        covered = torch.zeros(value.numel(), dtype=torch.int64)
        for layer in layers:
            for part in layer.parts:
                if part.parameter == name:
                    assert part.shape == tuple(value.shape)
                    covered[slice(None) if part.index is None else part.index] += 1
        assert covered.eq(1).all(), name
    assert len({layer.path for layer in layers}) == len(layers)
    assert [layer.depth for layer in layers] == list(range(len(layers)))
    assert {layer.kind for layer in layers} <= set(KINDS)


@pytest.mark.parametrize("model_type", HUGGING_FACE)
def test_every_parameter_of_a_hugging_face_model_is_in_exactly_one_layer(
    hugging_face: Callable[[str], nn.Module], model_type: str
) -> None:
    assert_every_parameter_is_in_exactly_one_layer(hugging_face(model_type))


@pytest.mark.parametrize("norm", ["none", "pre", "post"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_of_the_built_in_decoder_is_in_exactly_one_layer(norm: str, tied: bool) -> None:
    module = GPT(GPTConfig(7, 4, 2, 2, 8, norm=norm, tied=tied))
    assert_every_parameter_is_in_exactly_one_layer(module)
    found = Counter(kinds(module).values())
    assert found["query"] == found["key"] == found["value"] == found["out"] == 2
    assert found["mlp_up"] == found["mlp_down"] == 2
    assert found["embedding"] == 2
    assert found["head"] == (0 if tied else 1)
    assert found["norm"] == {"none": 0, "pre": 5, "post": 4}[norm]
    assert blocks_of(module) == ("transformer.h.0", "transformer.h.1")


def test_llama_with_grouped_queries_and_a_tied_head(hugging_face: Callable[[str], nn.Module]) -> None:
    module = hugging_face("llama")
    found = kinds(module)
    assert found["model.embed_tokens"] == "embedding"
    assert "lm_head" not in found  # its only parameter is the embedding's
    block = "model.layers.1."
    assert {path.removeprefix(block): kind for path, kind in found.items() if path.startswith(block)} == {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.o_proj": "out",
        "mlp.gate_proj": "mlp_up",
        "mlp.up_proj": "mlp_up",
        "mlp.down_proj": "mlp_down",
        "input_layernorm": "norm",
        "post_attention_layernorm": "norm",
    }
    assert layer_at(module, "model.layers.0.self_attn.q_proj").size == 256
    assert layer_at(module, "model.layers.0.self_attn.k_proj").size == 128
    assert blocks_of(module) == ("model.layers.0", "model.layers.1")
    layers = layers_of(module)
    inside_first = depth_within(layers, "model.layers.0")
    assert layers[inside_first].path.startswith("model.layers.0.")
    assert layers[inside_first + 1].path.startswith("model.layers.1.")


def test_an_encoder_names_its_layers(hugging_face: Callable[[str], nn.Module]) -> None:
    module = hugging_face("bert")
    found = kinds(module)
    block = "bert.encoder.layer.0."
    assert {path.removeprefix(block): kind for path, kind in found.items() if path.startswith(block)} == {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "out",
        "attention.output.LayerNorm": "norm",
        "intermediate.dense": "mlp_up",
        "output.dense": "mlp_down",
        "output.LayerNorm": "norm",
    }
    assert [path for path, kind in found.items() if kind == "embedding"] == [
        f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")
    ]
    assert blocks_of(module) == ("bert.encoder.layer.0", "bert.encoder.layer.1")


def attention_inputs(module: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of the first attention in a forward pass."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    original = nn.functional.scaled_dot_product_attention

    def watch(query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object) -> Tensor:
        seen.append((query.detach().clone(), key.detach().clone(), value.detach().clone()))
        return original(query, key, value, *rest, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(nn.functional, "scaled_dot_product_attention", watch)
        module(tokens)
    return seen[0]


FUSED = {
    "gpt2": "transformer.h.0.attn.c_attn",  # Conv1D: outputs are columns
    "gpt_neox": "gpt_neox.layers.0.attention.query_key_value",  # stacked head by head
    "phi3": "model.layers.0.self_attn.qkv_proj",  # eight query heads, two key-value heads
    "falcon": "transformer.h.0.self_attention.query_key_value",  # in groups of four queries, a key, a value
}


@pytest.mark.parametrize("model_type", FUSED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_changing_one_part_of_a_fused_projection_changes_only_its_role(
    hugging_face: Callable[[str], nn.Module], model_type: str, place: int
) -> None:
    module = hugging_face(model_type)
    role = ("query", "key", "value")[place]
    layer = layer_at(module, f"{FUSED[model_type]}.{role}")
    assert layer.kind == role
    parameters = dict(module.named_parameters())
    tokens = torch.arange(6).reshape(1, 6)
    before = attention_inputs(module, tokens)
    original = {part.parameter: parameters[part.parameter].detach().clone() for part in layer.parts}
    try:
        with torch.no_grad():
            for part in layer.parts:
                parameters[part.parameter] += part.scatter(torch.full((part.size,), 0.5))
        after = attention_inputs(module, tokens)
    finally:
        with torch.no_grad():
            for name, value in original.items():
                parameters[name].copy_(value)
    changed = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert changed == [position == place for position in range(3)]
    # ... and every channel of it that the weights can reach, in every head.
    assert (before[place] != after[place]).any(dim=2).all()


def test_torch_encoder_is_split_by_role() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    assert_every_parameter_is_in_exactly_one_layer(encoder)
    found = kinds(encoder)
    assert found["layers.1.self_attn.in_proj.query"] == "query"
    assert found["layers.1.self_attn.in_proj.key"] == "key"
    assert found["layers.1.self_attn.in_proj.value"] == "value"
    assert found["layers.1.self_attn.out_proj"] == "out"
    assert found["layers.1.linear1"] == "mlp_up"
    assert found["layers.1.linear2"] == "mlp_down"
    assert found["layers.1.norm2"] == "norm"
    value = layer_at(encoder, "layers.0.self_attn.in_proj.value")
    attention = encoder.layers[0].self_attn
    weight, bias = value.parts
    assert torch.equal(weight.gather(attention.in_proj_weight), attention.in_proj_weight[32:].flatten())
    assert torch.equal(bias.gather(attention.in_proj_bias), attention.in_proj_bias[32:])
    assert blocks_of(encoder) == ("layers.0", "layers.1")


def test_a_parameter_of_the_root_has_a_name_of_its_own() -> None:
    class WithPositions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(4, 3))
            self.token = nn.Parameter(torch.zeros(3))
            self.head = nn.Linear(3, 2)

    module = WithPositions()
    assert_every_parameter_is_in_exactly_one_layer(module)
    assert kinds(module) == {"positions": "other", "token": "other", "head": "head"}  # "" is the whole model


def test_a_projection_that_only_has_the_name_is_left_whole(hugging_face: Callable[[str], nn.Module]) -> None:
    # Mamba's in_proj is 2 x 24 = 48 wide, which three divides; it holds no query.
    found = kinds(hugging_face("mamba"))
    assert found["backbone.layers.0.mixer.in_proj"] == "other"

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query_key_value = nn.Linear(6, 18)

    # Without a head count nobody knows how its rows are stacked.
    assert kinds(Own()) == {"query_key_value": "other"}


def test_norms_that_do_not_normalise_features_are_no_norms() -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4))
    assert list(kinds(module).values()) == ["norm", "norm", "other", "other"]


def test_blocks_are_the_longest_list_of_like_modules_with_children() -> None:
    def block() -> nn.Module:
        return nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})

    module = nn.ModuleDict({
        "many": nn.ModuleList(nn.Linear(2, 2) for _ in range(9)),
        "mixed": nn.ModuleList([block(), nn.Sequential(nn.Linear(2, 2)), block(), block(), block()]),
        "blocks": nn.ModuleList(block() for _ in range(3)),
    })
    assert blocks_of(module) == ("blocks.0", "blocks.1", "blocks.2")
    assert blocks_of(nn.Linear(2, 2)) == ()
