"""The training loop of a replay takes the steps that a plain torch loop takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import InputError
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.rerun.data import Rates
from hnf_offline.rerun.optimizer import RATIO
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.training import Training, in_evaluation_mode

PLAIN = Recipe("sgd")
Rows = Mapping[int, tuple[MicroBatch, ...]]


class Line(nn.Module):
    """loss = mean over rows of (w x - 1)^2, with dropout on x where asked."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25, 2.0]))
        self.bias = nn.Parameter(torch.tensor(0.125))
        self.drop = nn.Dropout(p)

    def forward(self, input_ids: Tensor) -> Tensor:
        return (self.drop(input_ids.float()) @ self.weight + self.bias - 1).square().mean()


def rows_of(step: int, count: int = 4) -> Tensor:
    return torch.randint(0, 5, (count, 3), generator=torch.Generator().manual_seed(step))


def fed(last: int, pieces: int = 1) -> Rows:
    return {
        step: tuple(MicroBatch(some, None, 1 / pieces) for some in rows_of(step).chunk(pieces))
        for step in range(1, last + 1)
    }


def make(module: nn.Module, recipe: Recipe = PLAIN, rate: float = 0.01, **options: object) -> Training:
    rows = options.pop("rows", fed(9))
    batches = SimpleNamespace(
        of=lambda step, accumulation=1: rows.get(step, ()), source=SimpleNamespace(path=Path("b"))
    )
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(module.parameters(), lr=rate)
    return Training(module, optimizer, recipe, batches, Rates(None, rate), 0, **options)  # type: ignore[arg-type]


def plainly(module: nn.Module, steps: int, clip: float | None = None, scale: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = module(rows_of(step)) * scale
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
@pytest.mark.parametrize("scale", [1.0, 0.75])
def test_a_replay_is_the_plain_loop_to_the_last_bit(clip: float | None, scale: float) -> None:
    ours, theirs = Line(), Line()
    training = make(ours, Recipe("sgd", clip=clip, loss_scale=scale))
    losses = [float(training.advance().loss) for _ in range(6)]  # type: ignore[arg-type]
    assert losses == plainly(theirs, 6, clip, scale)
    assert torch.equal(ours.weight, theirs.weight)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    whole, pieces = Line(), Line()
    one, other = make(whole), make(pieces, rows=fed(9, pieces=4))
    for _ in range(5):
        a, b = one.advance(), other.advance()
        assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-6)  # type: ignore[arg-type]
        assert float(a.grad_norm) == pytest.approx(float(b.grad_norm), rel=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(whole.weight, pieces.weight, rtol=1e-5)


def test_the_gradient_norm_is_told_before_clipping() -> None:
    free, bound = make(Line()), make(Line(), Recipe("sgd", clip=1e-3))
    assert float(free.advance().grad_norm) == float(bound.advance().grad_norm)  # type: ignore[arg-type]
    assert not torch.equal(free.module.weight, bound.module.weight)  # type: ignore[arg-type]


def test_a_batch_of_another_step_is_asked_for_where_the_recipe_says_so() -> None:
    ours, theirs = Line(), Line()
    training = make(
        ours, Recipe("sgd", batch_offset=-1), rows={step + 1: one for step, one in fed(9).items()}
    )
    with pytest.raises(InputError, match="batch of step 0"):
        training.advance()
    shifted = make(ours, Recipe("sgd", batch_offset=1), rows={step + 1: one for step, one in fed(9).items()})
    assert [float(shifted.advance().loss) for _ in range(3)] == plainly(theirs, 3)  # type: ignore[arg-type]


def test_a_batch_that_is_not_there_leaves_the_weights_alone() -> None:
    training = make(Line(), rows=fed(1))
    training.advance()
    before = training.module.weight.clone()  # type: ignore[operator, union-attr]
    with pytest.raises(InputError, match="does not hold the batch of step 2"):
        training.advance()
    assert training.step == 1
    assert torch.equal(training.module.weight, before)  # type: ignore[arg-type]


def test_every_group_keeps_its_ratio() -> None:
    module = Line()
    groups = [{"params": [module.weight], RATIO: 1.0}, {"params": [module.bias], RATIO: 0.25}]
    training = make(module, optimizer=torch.optim.SGD(groups, lr=1.0), rate=0.08)
    training.advance()
    assert [group["lr"] for group in training.optimizer.param_groups] == [0.08, 0.02]


def test_parameters_get_rates_of_their_own_and_lose_them_again() -> None:
    module = Line()
    groups = [{"params": [module.weight], RATIO: 1.0}, {"params": [module.bias], RATIO: 0.5}]
    training = make(module, optimizer=torch.optim.SGD(groups, lr=1.0), rate=0.1)
    training.scale_parameters({"bias": 0.1})
    training.scale_parameters({"weight": 0.1})
    training.set_learning_rate(1)
    rates = {training.names[group["params"][0]]: group["lr"] for group in training.optimizer.param_groups}
    assert rates == pytest.approx({"weight": 0.01, "bias": 0.05})


@pytest.mark.parametrize("recorded", [True, False])
def test_recorded_random_states_are_put_back_before_each_forward_pass(recorded: bool) -> None:
    torch.manual_seed(1)
    states: dict[int, Mapping[str, Tensor]] = {}
    module = Line(0.5).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    for step in range(1, 6):
        torch.rand(step)  # what a loader draws
        states[step] = {"cpu": torch.get_rng_state()}
        optimizer.zero_grad()
        loss = module(rows_of(step))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    known: Callable[[int], Mapping[str, Tensor] | None] = states.get if recorded else lambda step: None
    training = make(Line(0.5), Recipe("sgd", dropout=True), random_state_of=known)
    assert ([float(training.advance().loss) for _ in range(5)] == losses) is recorded  # type: ignore[arg-type]


def test_dropout_is_off_where_the_recipe_says_so() -> None:
    ours, theirs = Line(0.5), Line()
    training = make(ours, Recipe("sgd"))
    assert [float(training.advance().loss) for _ in range(3)] == plainly(theirs, 3)  # type: ignore[arg-type]


def test_a_measurement_switches_dropout_off_and_leaves_the_generator_alone() -> None:
    module = Line(0.5).train()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with in_evaluation_mode(module):
        assert not module.training
        torch.rand(7)
    assert module.training
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_precision_of_the_recipe_is_that_of_the_forward_pass(precision: str) -> None:
    seen: list[torch.dtype] = []

    class Watched(Line):
        def forward(self, input_ids: Tensor) -> Tensor:
            seen.append((input_ids.float() @ self.weight).dtype)
            return super().forward(input_ids)

    make(Watched(), replace(Recipe("sgd"), precision=precision)).advance()
    assert seen == [getattr(torch, precision)]
