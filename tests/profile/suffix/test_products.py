"""Suffix replay: blocks found, forward passes that start again, and products held against exact ones."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.linalg.differences import GradientDifferences, check_precision, step_length
from hnf_offline.linalg.lockstep import Problem, extremes_together
from hnf_offline.linalg.stopping import StopRule
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.layer_curvature import exact_graph, start_vector
from hnf_offline.profile.suffix.blocks import CallOrder, call_order
from hnf_offline.profile.suffix.calibration import Calibration, calibrate
from hnf_offline.profile.suffix.products import Request, SuffixProducts
from hnf_offline.profile.suffix.restart import Restart
from hnf_offline.profile.whole import losses_of
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.run.model.loss import evaluate

VOCABULARY, LENGTH = 13, 6


class Encoder(nn.Module):
    """torch's encoder; its batch axis comes second unless `rows_first`."""

    def __init__(self, *, rows_first: bool) -> None:
        super().__init__()
        self.rows_first = rows_first
        self.embed = nn.Embedding(VOCABULARY, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=rows_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        stream = self.embed(input_ids)
        stream = self.encoder(stream) if self.rows_first else self.encoder(stream.transpose(0, 1))
        return self.head(stream if self.rows_first else stream.transpose(0, 1))  # type: ignore[no-any-return]


class Routed(GPT):
    """A decoder one module of which looks at other rows of the batch, as a router of experts may."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.register_module("router", RowRouter())

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.router(super().forward(input_ids))  # type: ignore[no-any-return]


class RowRouter(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits - logits.mean(dim=0, keepdim=True) / 2


class Shared(GPT):
    """A decoder that calls its blocks twice."""

    def forward(self, input_ids: Tensor) -> Tensor:
        stream = self.transformer["wte"](input_ids)
        for block in [*self.transformer["h"], *self.transformer["h"]]:  # type: ignore[misc]
            stream = block(stream)
        return self.lm_head(stream)  # type: ignore[no-any-return]


def decoder(norm: str, kind: type[GPT] = GPT, *, tied: bool = False) -> GPT:
    config = GPTConfig(VOCABULARY, LENGTH, 3, 2, 8, mlp_width=12, norm=norm, tied=tied, initial_std=0.25)  # type: ignore[arg-type]
    return kind(config).initialise(torch.Generator().manual_seed(1)).eval()


def seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make().eval()


MODELS = {
    "pre": lambda: decoder("pre"),
    "post, tied": lambda: decoder("post", tied=True),
    "none": lambda: decoder("none"),
    "rows first": lambda: seeded(lambda: Encoder(rows_first=True)),
    "rows second": lambda: seeded(lambda: Encoder(rows_first=False)),
    "rows coupled": lambda: decoder("pre", Routed),
    "blocks called twice": lambda: decoder("none", Shared),
}
TOKENS = torch.randint(0, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(2))


def order_of(module: nn.Module, tokens: Tensor = TOKENS) -> CallOrder:
    return call_order(module, lambda times: evaluate(module, tokens.repeat(times, 1), None))


def noise(size: int, seed: int = 3) -> Tensor:
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("copies", [1, 5])
def test_every_layers_product_is_the_exact_one(name: str, copies: int) -> None:
    module = MODELS[name]().double()
    order, batches = order_of(module), MicroBatch(TOKENS, None, 1.0).split(3)
    graph = exact_graph(module, batches, keep=True)
    products = SuffixProducts(module, order, batches, graph.gradients, copies=copies)
    groups: dict[int | None, list[Any]] = {}
    for layer in layers_of(module):
        groups.setdefault(order.block_of(layer), []).append(layer)
    for group in groups.values():
        vectors = [7.0 * noise(layer.size) for layer in group]
        found = products([Request(layer, vector) for layer, vector in zip(group, vectors, strict=True)])
        for layer, vector, product in zip(group, vectors, found, strict=True):
            exact = graph.block(layer.parts)(vector)
            largest = max(float(exact.norm()), 1e-3)
            assert float((product - exact).norm()) <= 1e-4 * largest, layer.path
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any("forward" in part.__dict__ for part in module.modules())


def test_blocks_are_found_and_shared_ones_are_not() -> None:
    assert order_of(decoder("pre")).blocks == tuple(f"transformer.h.{block}" for block in range(3))
    assert order_of(MODELS["rows second"]()).row_axes == ((1,), (1,), (1,))
    assert order_of(MODELS["blocks called twice"]()).blocks == ()
    assert order_of(MODELS["rows coupled"]()).couples_rows and not order_of(decoder("pre")).couples_rows


def test_a_layer_starts_at_its_first_use() -> None:
    module = decoder("pre", tied=True)
    order = order_of(module)
    stages = {layer.path: order.stage(layer) for layer in layers_of(module)}
    assert stages["transformer.wte"] == 0, "also the head, but the embedding comes first"
    assert stages["transformer.h.2.mlp.c_fc"] == 2 and stages["transformer.ln_f"] == 3


def test_a_pass_that_starts_again_gives_the_same_loss() -> None:
    module = decoder("post")
    batch = MicroBatch(TOKENS, None, 1.0)
    whole = float(evaluate(module, TOKENS, None).loss)
    restart = Restart(module, order_of(module), batch)
    for block in range(3):
        outputs = [restart.block_output(block, {})] * 2
        assert float(restart.loss_behind(block, outputs)) == pytest.approx(2 * whole, rel=1e-6)
    with torch.no_grad():
        module.transformer["h"][0].mlp.c_fc.weight.zero_()  # type: ignore[index]
    assert float(restart.loss_with(1, {})) == pytest.approx(whole, rel=1e-6), "block 0 was skipped"
    assert float(restart.loss_with(0, {})) != pytest.approx(whole, rel=1e-3)


class Skipping(nn.Module):
    """Blocks whose last one also sees what the first one gave, as U-shaped decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        first = self.blocks[0](self.embed(input_ids))
        return self.head(self.blocks[2](self.blocks[1](first)) + first)  # type: ignore[no-any-return]


def test_fewer_copies_take_their_part_of_what_was_repeated_before() -> None:
    torch.manual_seed(0)
    module = Skipping()
    whole = float(evaluate(module, TOKENS, None).loss)
    restart = Restart(module, order_of(module), MicroBatch(TOKENS, None, 1.0))
    for copies in (3, 1, 2, 4, 2):
        outputs = [restart.block_output(2, {})] * copies
        assert float(restart.loss_behind(2, outputs)) == pytest.approx(copies * whole, rel=1e-5), copies


def test_calibration_finds_blocks_that_cannot_be_skipped() -> None:
    module = decoder("pre").float()
    order = order_of(module)
    batch = MicroBatch(TOKENS[:2], None, 1.0)
    layers = layers_of(module)

    def vectors(size: int) -> Tensor:
        return noise(size).float()

    good = calibrate(module, order, layers, batch, vectors)
    assert not good.raw.exact and max(good.raw.errors.values()) < 0.03
    # A wrong order: the last block said to be the first use of a weight of the first.
    wrong = dict(order.first_use) | {"transformer.wte.weight": 3}
    bad = CallOrder(order.blocks, wrong, order.inside, order.row_axes, order.couples_rows)
    found = calibrate(module, bad, layers, batch, vectors)
    assert found.raw.exact == {"transformer.wte"}
    assert found.method(layers[0]) == "exact" and found.raw.errors["transformer.wte"] > 0.5


def test_products_under_the_step_metric_have_steps_of_their_own() -> None:
    module = decoder("pre").float()
    layers, batch = layers_of(module), MicroBatch(TOKENS[:2], None, 1.0)
    asked: list[Mapping[str, Tensor]] = []

    def metric(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # As Adam's after its first update: the smaller the gradient, the longer the step.
        asked.append(gradients)
        return {name: 1 / (gradient.abs() + 1e-5) for name, gradient in gradients.items()}

    def calibrated(**more: Any) -> Calibration:
        return calibrate(module, order_of(module), layers, batch, lambda size: noise(size).float(), **more)

    without, found = calibrated(), calibrated(metric=metric)
    assert without.scaled.exact == {layer.path for layer in layers}, "nothing to hold them against"
    assert set(asked[0]) == dict(module.named_parameters()).keys()
    kept = [layer.path for layer in layers if layer.path not in found.scaled.exact]
    assert len(kept) > 0.7 * len(layers) and all(found.scaled.errors[path] < 0.03 for path in kept)
    assert median(found.scaled.steps[path] / found.raw.steps[path] for path in kept) < 0.5
    assert found.raw == without.raw


def test_differences_of_whole_gradients() -> None:
    module = decoder("none").double()
    batches = MicroBatch(TOKENS, None, 1.0).split(2)
    graph = exact_graph(module, batches, keep=True)
    whole = GradientDifferences(losses_of(module, batches), [0.5, 0.5], dict(module.named_parameters()))
    assert float(whole.loss) == pytest.approx(float(graph.loss), rel=1e-12)
    vectors = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    exact, found = graph.product(vectors), whole.product(vectors)
    for name, value in exact.items():
        assert torch.allclose(found[name], value, atol=1e-4 * float(value.norm())), name
    zero = {name: torch.zeros_like(value) for name, value in vectors.items()}
    assert all(not bool(value.any()) for value in whole.product(zero).values())


def test_steps_are_longer_the_more_entries_a_vector_lies_on() -> None:
    parameter = torch.full((400,), 2.0)
    spread, single = torch.full((400,), 0.05), torch.nn.functional.one_hot(torch.tensor(7), 400).float()
    assert float(step_length([spread], [parameter], 1e-3)) == pytest.approx(1e-3 * 2.0 * 20)
    assert float(step_length([single], [parameter], 1e-3)) == pytest.approx(1e-3 * 2.0)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="float32 or float64"):
            check_precision(dtype)


def test_extremes_side_by_side_are_those_of_each_alone() -> None:
    matrices = [torch.diag(torch.arange(1.0, 20.0, dtype=torch.float64) * factor) for factor in (1, -3)]
    scale = torch.linspace(0.5, 2, 19, dtype=torch.float64)
    rule = StopRule(residual=1e-8, minimum=3, maximum=40)
    problems = [Problem(noise(19), rule), Problem(noise(19), rule, scale)]
    found = extremes_together(
        lambda active, vectors: [matrices[n] @ v for n, v in zip(active, vectors, strict=True)], problems
    )
    scaled = torch.linalg.eigvalsh(scale[:, None] * matrices[1] * scale)
    assert found[0].largest.value == pytest.approx(19.0) and found[0].smallest.value == pytest.approx(1.0)
    assert found[1].largest.value == pytest.approx(float(scaled[-1]))
    assert found[1].smallest.value == pytest.approx(float(scaled[0]))


def test_a_start_does_not_cancel_what_is_known() -> None:
    known, random = noise(50, 1), noise(50, 2)
    mixed = start_vector(random, known, -known)
    assert abs(float(mixed @ known)) / float(mixed.norm()) > 0.99
    assert torch.equal(start_vector(random, torch.zeros(50, dtype=torch.float64)), random)
