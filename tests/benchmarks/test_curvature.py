from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.curvature import page
from benchmarks.curvature.model import Decoder, NextToken, Size
from benchmarks.curvature.ours import ours
from benchmarks.curvature.peers import curvlinops, eigenthings, eigenthings_by_products, naive, pyhessian
from benchmarks.curvature.problem import WHOLE, Answer, Problem
from benchmarks.curvature.reference import dominant, reference
from benchmarks.curvature.timing import Errors, Spread, cost

TINY = Size(width=8, blocks=2, heads=2, steps=0, rows=2)
TARGETS = ("blocks.0.ln_1", "blocks.0.attention.v_proj", "blocks.1.mlp.down_proj")


@pytest.fixture(scope="module")
def problem() -> Problem:
    generator = torch.Generator().manual_seed(3)
    module = Decoder(TINY).initialise(generator)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Problem(module.eval(), torch.randint(128, (2, 16), generator=generator), TARGETS)


@pytest.fixture(scope="module")
def dense_ends(problem: Problem) -> dict[str, tuple[float, float]]:
    """Both ends of each target's block, from a Hessian that torch builds entry by entry."""
    module = Decoder(TINY).double()
    module.load_state_dict(problem.module.state_dict())
    ends = {}
    for target in TARGETS:
        own = {name: dict(module.named_parameters())[name].detach() for name in problem.parameters(target)}

        def loss(flat: Tensor, own: dict[str, Tensor] = own) -> Tensor:
            pieces = flat.split([value.numel() for value in own.values()])
            values = {name: piece.reshape(own[name].shape) for name, piece in zip(own, pieces, strict=True)}
            return NextToken()(functional_call(module, values, (problem.tokens,)), problem.tokens)

        flat = torch.cat([value.flatten() for value in own.values()])
        eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
        ends[target] = (float(eigenvalues[-1]), float(eigenvalues[0]))
    return ends


def worst(answer: Answer, truth: dict[str, tuple[float, float]]) -> float:
    assert set(answer) >= set(TARGETS)
    return max(abs(answer[target].dominant / dominant(truth[target]) - 1) for target in TARGETS)


def test_the_reference_is_the_dense_spectrum(
    problem: Problem, dense_ends: dict[str, tuple[float, float]]
) -> None:
    found = reference(problem)
    for target in TARGETS:
        assert found[target] == pytest.approx(dense_ends[target], rel=1e-7)


def test_ours_finds_every_layer_and_the_whole_model(
    problem: Problem, dense_ends: dict[str, tuple[float, float]]
) -> None:
    found = ours(problem, "certified")
    assert set(found.answer) == {*problem.layers, WHOLE}
    assert worst(found.answer, dense_ends) < 1e-2
    again = ours(problem, "certified", found)
    assert worst(again.answer, dense_ends) < 1e-2


def test_the_naive_way_finds_the_same(problem: Problem, dense_ends: dict[str, tuple[float, float]]) -> None:
    assert worst(naive(problem, 1e-5), dense_ends) < 1e-2


@pytest.mark.parametrize(
    ("package", "measure"),
    [
        ("pyhessian", partial(pyhessian, tolerance=1e-5)),
        ("curvlinops", partial(curvlinops, tolerance=0.0, basis=None)),
        ("curvlinops", partial(curvlinops, tolerance=1e-2, basis=7)),
        ("hessian_eigenthings", partial(eigenthings, method="autograd", products=12)),
        ("hessian_eigenthings", partial(eigenthings, method="finite_difference", products=12)),
    ],
)
def test_a_peer_finds_the_same_and_leaves_the_module_as_it_was(
    problem: Problem, dense_ends: dict[str, tuple[float, float]], package: str, measure: partial[Answer]
) -> None:
    pytest.importorskip(package)
    before = {name: value.detach().clone() for name, value in problem.module.named_parameters()}
    answer = measure(problem)
    assert worst(answer, dense_ends) < 1e-2
    assert all(found.products > 1 for found in answer.values())
    for name, parameter in problem.module.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_one_long_run_tells_what_every_shorter_one_would_say(problem: Problem) -> None:
    pytest.importorskip("hessian_eigenthings")
    tried = eigenthings_by_products(problem, 6)
    for products in (2, 4, 6):
        once = eigenthings(problem, "autograd", products)
        for target in TARGETS:
            assert tried[products][target].dominant == pytest.approx(once[target].dominant, rel=1e-4)


def test_cost_is_counted_in_forward_passes(problem: Problem) -> None:
    forwards: list[int] = []

    def work() -> str:
        for number in range(40):
            problem.forward()
            forwards.append(number)
        return "done"

    spent, result = cost(problem, work)
    assert result == "done"
    assert len(forwards) == 40
    assert spent.forwards > 0
    assert spent.seconds > 0


def test_a_nan_is_as_wrong_as_can_be() -> None:
    errors = Errors.of([0.0, 0.02, 0.06, math.nan])
    assert errors.worst == math.inf
    assert errors.over_one == 0.75
    assert errors.over_five == 0.5


def test_a_fragment_replaces_its_own_part_only() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for part in ("small", "large", "memory", "layers", "tokens", "checkpoints"):
        written = page.put(text, part, "| new |")
        assert f"<!-- {part}: begin -->\n| new |\n<!-- {part}: end -->" in written
        assert page.put(written, part, "| new |") == written
    with pytest.raises(ValueError, match="no markers of weather"):
        page.put(text, "weather", "")


def test_a_figure_stands_with_its_range() -> None:
    assert page.number(Spread.of([200.0, 190.0, 1210.0])) == "200 (190-1,210)"
    assert page.number(Spread.of([7.25]), 1) == "7.2"
    assert page.percent(0.00123) == "0.12 %"
    assert page.percent(2.34) == "234 %"
    assert page.percent(0.0) == "0 %"
    assert page.percent(1e-7) == "< 0.001 %"  # the reference is no better
