"""Curvature penalty: value and gradient against dense Hessians, trace in the mean."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hnf_offline.errors import UsageError
from hnf_offline.linalg.hessian import Part
from hnf_offline.rerun.policies.curvature_penalty import quadratic_form, random_signs
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training


class Tiny(nn.Module):
    """Six parameters, so that all sign vectors can be tried."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(2, 2, bias=False).double()
        self.second = nn.Linear(2, 1, bias=False).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs))).square().mean()  # type: ignore[no-any-return]


INPUTS = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def dense_hessian(module: nn.Module, flat: Tensor) -> Tensor:
    shapes = [(name, value.shape, value.numel()) for name, value in module.named_parameters()]

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([size for _, _, size in shapes])
        named = {name: piece.reshape(shape) for (name, shape, _), piece in zip(shapes, pieces, strict=True)}
        return functional_call(module, named, (INPUTS,))  # type: ignore[no-any-return]

    return torch.func.hessian(loss)(flat)  # type: ignore[no-any-return]


def parts_of(module: nn.Module) -> list[Part]:
    return [Part(name, tuple(value.shape)) for name, value in module.named_parameters()]


def flat_of(module: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in module.parameters()])


def test_value_and_gradient_are_those_of_the_dense_hessian() -> None:
    module, vector = Tiny(), torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
    parameters = dict(module.named_parameters())
    form = quadratic_form(module(INPUTS), parameters, parts_of(module), vector.split([4, 2]))
    assert form is not None
    flat = flat_of(module).requires_grad_()
    dense = vector @ dense_hessian(module, flat) @ vector
    assert float(form.detach()) == pytest.approx(float(dense.detach()), rel=1e-12)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(form, list(parameters.values()))])
    (expected,) = torch.autograd.grad(dense, flat)
    torch.testing.assert_close(gradient, expected)


def test_the_mean_over_all_signs_is_the_trace_of_the_block() -> None:
    module = Tiny()
    trace = float(dense_hessian(module, flat_of(module)).diagonal()[:4].sum())
    forms = []
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        vector = torch.tensor(signs, dtype=torch.float64)
        form = quadratic_form(module(INPUTS), dict(module.named_parameters()), parts_of(module)[:1], [vector])
        assert form is not None
        forms.append(float(form.detach()))
    assert sum(forms) / len(forms) == pytest.approx(trace, rel=1e-12)


def test_some_rows_of_a_parameter_are_a_block_of_their_own() -> None:
    module = Tiny()
    part = Part("first.weight", (2, 2), torch.tensor([1, 3]))
    form = quadratic_form(
        module(INPUTS), dict(module.named_parameters()), [part], [torch.tensor([1.0, -1.0])]
    )
    block = dense_hessian(module, flat_of(module))[[1, 3]][:, [1, 3]]
    vector = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert form is not None
    assert float(form.detach()) == pytest.approx(float(vector @ block @ vector), rel=1e-12)


def test_a_linear_loss_has_none() -> None:
    leaf = nn.Parameter(torch.ones(3))
    assert quadratic_form((2 * leaf).sum(), {"w": leaf}, [Part("w", (3,))], [torch.ones(3)]) is None


def test_signs_are_signs_and_belong_to_the_step() -> None:
    parts = [Part("a", (40, 50)), Part("b", (7,))]
    first, again, other = random_signs(parts, 3), random_signs(parts, 3), random_signs(parts, 4)
    assert [len(piece) for piece in first] == [2000, 7]
    assert set(first[0].tolist()) == {-1, 1}
    assert abs(first[0].float().mean()) < 0.1
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_it_lowers_the_curvature_of_the_run(start: Start) -> None:
    def trace_after(weight: str) -> float:
        (policy,) = make_policies(f"curvature-penalty={weight}")
        training = start.training(Recipe(start.kinds[0]), [policy])
        for _ in range(20):
            training.advance()
        training.end()
        return float(policy.notes()[0].rpartition(" samples, ")[2].split()[0])

    assert trace_after("1e-3") < 0.7 * trace_after("1e-30")


def test_between_its_steps_the_run_is_as_was(start: Start) -> None:
    def losses(spelling: str | None, steps: int) -> list[float]:
        training = start.training(Recipe(start.kinds[0]), make_policies(spelling) if spelling else ())
        return [float(training.advance().loss) for _ in range(steps)]  # type: ignore[arg-type]

    was = losses(None, 6)
    # A penalty too small for float32 leaves what the other kernel of attention rounds, and no more.
    assert losses("curvature-penalty=1e-30,every=3", 6) == pytest.approx(was, rel=1e-5)
    assert losses("curvature-penalty=1e-3,every=3", 6)[1:] != pytest.approx(was[1:], rel=1e-5)
    assert losses(None, 6) == was


def test_micro_batches_together_give_the_penalty_of_the_batch(train: Callable[..., Training]) -> None:
    class Rows(Tiny):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(INPUTS[input_ids.flatten()])

    rows = torch.arange(4).reshape(4, 1).repeat(1, 2)
    whole, pieces = Rows(), Rows()
    train(whole, rows, "curvature-penalty=0.5").advance()
    train(pieces, rows, "curvature-penalty=0.5", pieces=2).advance()
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_layers_that_are_not_there_are_named(start: Start) -> None:
    with pytest.raises(UsageError, match=r"no layer's path fits '\*\.nowhere'; layers are called"):
        start.training(Recipe(start.kinds[0]), make_policies("curvature-penalty=1e-3,*.nowhere"))


@pytest.mark.parametrize(
    "value", ["", "0", "every=2", "1e-3,a,b", "1e-3,every=0", "1e-3,each=2", "1e-3,every="]
)
def test_what_cannot_be_meant_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="write curvature-penalty=1e-4"):
        make_policies(f"curvature-penalty={value}")
