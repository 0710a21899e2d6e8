"""skip and rollback-skip: which batch a step is trained on, and none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hnf_offline.errors import InputError, UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training

Toy = Callable[..., Training]


def asked(training: Training) -> list[int]:
    batches: Any = training.batches
    return list(batches.asked)


def test_a_skipped_step_leaves_weights_and_moments_and_the_next_takes_its_own_batch(start: Start) -> None:
    training = start.training(Recipe(start.kinds[0]), make_policies("skip=12"))
    training.advance()
    before = [parameter.detach().clone() for parameter in training.parameters]
    counts = [float(state["step"]) for state in training.optimizer.state.values()]
    taken = training.advance()
    assert (taken.step, taken.loss, taken.grad_norm, taken.learning_rate) == (12, None, None, None)
    assert all(torch.equal(a, b) for a, b in zip(before, training.parameters, strict=True))
    assert [float(state["step"]) for state in training.optimizer.state.values()] == counts
    # Step 13 on the batch of step 13: its loss is that of the weights of step 11 on that batch.
    third = training.advance().loss
    as_was = start.training(Recipe(start.kinds[0]))
    as_was.advance()
    as_was.step = 12
    expected = as_was.advance().loss
    assert third is not None and expected is not None
    assert float(third) == float(expected)


def test_steps_and_ranges_are_skipped_both_ends_included(toy: Toy) -> None:
    training = toy("skip=2,4-6,9")
    losses = [training.advance().loss is None for _ in range(10)]
    assert [step for step, none in enumerate(losses, 1) if none] == [2, 4, 5, 6, 9]
    assert asked(training) == [1, 3, 7, 8, 10]


def test_a_huge_range_costs_nothing(toy: Toy) -> None:
    training = toy("skip=2-2000000000")
    assert training.advance().loss is not None
    assert training.advance().loss is None


def test_the_schedule_goes_on_over_a_skipped_step(toy: Toy) -> None:
    training = toy("skip=2", rates=[0.1, 0.2, 0.3])
    assert [training.advance().learning_rate for _ in range(3)] == [0.1, None, 0.3]


def test_skipping_only_what_is_past_is_refused(toy: Toy) -> None:
    with pytest.raises(UsageError, match="step 5 is not trained again") as refused:
        toy("skip=3,4-5", start=5)
    assert "above 5" in str(refused.value.remedy)
    toy("skip=3,6", start=5)


def test_after_rolling_back_every_step_takes_the_batch_n_later_at_its_own_rate(toy: Toy) -> None:
    training = toy("rollback-skip=20", rates=[0.1 * step for step in range(1, 41)], start=3)
    rates = [training.advance().learning_rate for _ in range(3)]
    assert asked(training) == [24, 25, 26]
    assert rates == pytest.approx([0.4, 0.5, 0.6])


def test_rolling_back_also_shifts_a_shifted_recipe(toy: Toy) -> None:
    training = toy("rollback-skip=2", recipe={"batch_offset": -1})
    training.advance()
    assert asked(training) == [2]


def test_skip_names_steps_of_training_not_batches(toy: Toy) -> None:
    training = toy("rollback-skip=10+skip=2")
    for _ in range(3):
        training.advance()
    assert asked(training) == [11, 13]


def test_skipping_more_batches_than_there_are_is_refused_at_once(toy: Toy) -> None:
    with pytest.raises(UsageError, match="batch of step 1001"):
        toy("rollback-skip=1000")
    training = toy("rollback-skip=59")  # batches 1 to 60
    training.advance()
    with pytest.raises(InputError, match="step 61"):
        training.advance()


def test_skipping_batches_of_a_full_batch_run_is_refused_as_it_would_do_nothing(toy: Toy) -> None:
    with pytest.raises(UsageError, match="same batch"):
        toy("rollback-skip=5", every_step=True)


@pytest.mark.parametrize(
    ("spelling", "because"),
    [
        ("skip", "STEPS"),
        ("skip=", "STEPS"),
        ("skip=5-3", "backwards"),
        ("skip=0", "at least 1"),
        ("skip=1,,2", "no whole number"),
        ("skip=-5", "no whole number"),
        ("skip=1-2-3", "no whole number"),
        ("rollback-skip=0", "at least 1"),
        ("rollback-skip=1.5", "no whole number"),
    ],
)
def test_what_is_no_step_is_refused(spelling: str, because: str) -> None:
    with pytest.raises(UsageError, match=because):
        make_policies(spelling)
