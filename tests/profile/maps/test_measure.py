"""Every map of seven tiny models against dense float64 Jacobians of the whole model's own forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.profile.maps.capture import first_tensor
from hnf_offline.profile.maps.measure import SEQUENCES
from hnf_offline.run.model.layers import blocks_of, centres, is_norm
from tests.profile.maps.conftest import Mapped

MODELS = ["pre", "post", "none", "llama", "gpt2", "encoder", "encoder-second"]
Of = Callable[[str], Mapped]


def through(module: nn.Module, path: str, tokens: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A module's map, by running the whole model with the module's hidden state replaced on its way in."""
    state: dict[str, Tensor] = {}

    def enter(
        _part: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        usual = keywords.get("hidden_states")
        old = arguments[0] if arguments else usual
        assert isinstance(old, Tensor)
        new = state.setdefault("given", old.detach().clone()) if "new" not in state else state["new"]
        return (
            tuple(new if value is old else value for value in arguments),
            {name: new if value is old else value for name, value in keywords.items()},
        )

    def leave(_part: nn.Module, _arguments: object, _keywords: object, output: object) -> None:
        out = first_tensor(output)
        assert out is not None
        state["out"] = out

    def function(new: Tensor) -> Tensor:
        state["new"] = new
        part = module.get_submodule(path)
        handles = [
            part.register_forward_pre_hook(enter, with_kwargs=True),
            part.register_forward_hook(leave, with_kwargs=True),
        ]
        try:
            module(tokens)
        finally:
            for handle in handles:
                handle.remove()
        return state["out"]

    part = module.get_submodule(path)
    handle = part.register_forward_pre_hook(enter, with_kwargs=True)
    module(tokens)
    handle.remove()
    return function, state["given"]


def dense_blocks(function: Callable[[Tensor], Tensor], point: Tensor, batch: int) -> list[Tensor]:
    """Diagonal blocks of the dense Jacobian, one an item along dimension `batch`."""
    whole = torch.autograd.functional.jacobian(function, point)
    half = point.ndim
    moved = whole.movedim((batch, half + batch), (0, 1))
    items = point.shape[batch]
    rows, columns = math.prod(moved.shape[2 : 1 + half]), math.prod(moved.shape[1 + half :])
    square = moved.reshape(items, items, rows, columns)
    assert square[0, 1:].abs().max() == 0 if items > 1 else True  # the items are independent
    return [square[item, item] for item in range(items)]


@pytest.mark.parametrize("name", MODELS)
def test_largest_singular_values_equal_those_of_the_dense_jacobian(name: str, mapped: Of) -> None:
    seen = mapped(name)
    tokens = seen.subject.batches[0].tokens[:SEQUENCES]
    counted: dict[str, int] = {}
    for path, row in seen.of("map.sigma_max").items():
        if row.kind == "softmax":
            continue
        function, point = through(seen.module, path, tokens)
        if row.kind in {"norm", "mlp"}:
            shape = point.shape  # one item a token: flatten what stands before the width
            blocks = dense_blocks(
                lambda flat, f=function, s=shape: f(flat.reshape(s)).reshape(flat.shape),
                point.reshape(-1, shape[-1]),
                0,
            )
        else:
            blocks = dense_blocks(function, point, 1 if name == "encoder-second" else 0)
        truth = max(float(torch.linalg.matrix_norm(block, 2)) for block in blocks)
        assert row.value == pytest.approx(truth, rel=1e-6 if row.low is None else 0.01), path
        if row.low is not None and row.high is not None:
            # Llama's norms compute in float32, whatever the model is in
            assert row.low <= truth * (1 + 1e-6) and row.certified
        counted[row.kind] = counted.get(row.kind, 0) + 1
    assert counted.get("norm", 0) == sum(is_norm(part) for part in seen.module.modules())
    assert counted["block"] == counted["attention"] == len(blocks_of(seen.module)) == 1
    assert counted.get("mlp", 0) == (0 if name.startswith("encoder") else 1)


@pytest.mark.parametrize("name", ["pre", "llama"])
def test_conditions_of_an_mlp_equal_those_of_the_dense_jacobian(name: str, mapped: Of) -> None:
    seen = mapped(name)
    (path,) = (row.layer for row in seen.rows if row.kind == "mlp" and row.quantity == "map.condition")
    function, point = through(seen.module, path, seen.subject.batches[0].tokens[:SEQUENCES])
    flat = point.reshape(-1, point.shape[-1])
    blocks = dense_blocks(lambda x: function(x.reshape(point.shape)).reshape(flat.shape), flat, 0)
    values = torch.linalg.svdvals(torch.stack(blocks))
    conditions = values[:, 0] / values[:, -1]
    row = seen.of("map.condition")[path]
    assert row.value == pytest.approx(conditions.median().item(), rel=1e-4)
    assert (row.low, row.high) == (
        pytest.approx(conditions.min().item(), rel=1e-4),
        pytest.approx(conditions.max().item(), rel=1e-4),
    )
    spread = values.log().std(dim=1, correction=0).median().item()
    assert seen.of("map.log_singular_spread")[path].value == pytest.approx(spread, rel=1e-4)
    over_rms = (values[:, 0] / values.square().mean(dim=1).sqrt()).median().item()
    assert seen.of("map.sigma_over_rms")[path].value == pytest.approx(over_rms, rel=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_typical_stretch_of_sequence_maps_lies_within_its_error_bar(name: str, mapped: Of) -> None:
    """Four random products: the bar is one standard error and the range over sequences; three of them are certain."""
    seen = mapped(name)
    for path, row in seen.of("map.sigma_over_rms").items():
        if row.kind not in {"block", "attention"}:
            continue
        function, point = through(seen.module, path, seen.subject.batches[0].tokens[:SEQUENCES])
        blocks = dense_blocks(function, point, 1 if name == "encoder-second" else 0)
        values = torch.stack([torch.linalg.svdvals(block) for block in blocks])
        truth = (values[:, 0] / values.square().mean(dim=1).sqrt()).median().item()
        assert row.low is not None and row.high is not None and row.low <= row.value <= row.high
        assert abs(row.value - truth) <= 3 * (row.high - row.low), path


@pytest.mark.parametrize("name", ["pre", "post", "llama", "gpt2"])
def test_norms_without_gains_follow_their_closed_forms(name: str, mapped: Of) -> None:
    """Singular values 1/s and zeros by construction; ||D2|| = 2 / (sqrt(3 n) s^2), for RMSNorm as well."""
    seen = mapped(name)
    sigma = seen.of("map.sigma_max")
    norms = [path for path, row in sigma.items() if row.kind == "norm"]
    assert norms
    for path in norms:
        norm = seen.module.get_submodule(path)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert centres(norm) == (name != "llama")
        rounding = 1e-5 if name == "llama" else 1e-9
        assert seen.of("map.condition")[path].value == pytest.approx(1.0, rel=rounding)
        assert seen.of("map.log_singular_spread")[path].value == pytest.approx(0.0, abs=rounding)
        assert seen.of("map.sigma_over_rms")[path].value == pytest.approx(1.0, rel=rounding)
        # the largest 1/s over the tokens is at the same token as the largest ||D2||; epsilon enters at 1e-5
        size = norm.weight.numel()
        curved = seen.of("map.d2_norm")[path]
        assert curved.value == pytest.approx(2 / math.sqrt(3 * size) * sigma[path].value ** 2, rel=1e-3)
        assert curved.high is None and curved.low == curved.value
        assert seen.of("map.hnf_curvature")[path].value == curved.value / 2
        assert seen.of("map.newton_curvature")[path].value == pytest.approx(1 / math.sqrt(3 * size), rel=1e-3)
        # the scale of a norm's input does not matter: J x = 0, so |J| |x| / |f(x)| is 1 and 8 bits give 8
        assert 8 - 1e-3 <= seen.of("map.precision_bits")[path].value < 9


@pytest.mark.parametrize("name", ["none", pytest.param("llama", marks=pytest.mark.slow)])
def test_the_second_derivative_is_a_lower_bound_near_the_best_of_the_dense_tensor(
    name: str, mapped: Of
) -> None:
    seen = mapped(name)
    tokens = seen.subject.batches[0].tokens[:SEQUENCES]
    generator = torch.Generator().manual_seed(0)
    for path, row in seen.of("map.d2_norm").items():
        if row.kind not in {"block", "attention"}:
            continue
        best, frobenius = 0.0, 0.0
        for sequence in tokens[:1]:
            function, point = through(seen.module, path, sequence[None])
            size = point.numel()
            tensor = torch.stack([
                torch.autograd.functional.hessian(lambda x, f=function, i=i: f(x).flatten()[i], point)
                for i in range(size)
            ]).reshape(size, size, size)
            frobenius = max(frobenius, float(tensor.norm()))
            # power iteration from many starts, on the dense tensor
            v = nn.functional.normalize(
                torch.randn(60, size, generator=generator, dtype=torch.float64), dim=1
            )
            for _ in range(40):
                w = nn.functional.normalize(torch.einsum("oij,ki,kj->ko", tensor, v, v), dim=1)
                values, vectors = torch.linalg.eigh(torch.einsum("oij,ko->kij", tensor, w))
                v = vectors[torch.arange(60), :, values.abs().argmax(dim=1)]
            best = max(best, float(torch.einsum("oij,ki,kj->ko", tensor, v, v).norm(dim=1).max()))
        assert row.value <= frobenius * (1 + 1e-6)
        assert row.value <= best * (1 + 1e-4), path
        assert row.value >= (0.95 if row.certified else 0.6) * best, path
