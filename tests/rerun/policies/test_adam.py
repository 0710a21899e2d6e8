"""beta1, beta2, eps, weight-decay and reset-moments against Adam written out by hand in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Stability, Training

Toy = Callable[..., Training]
RATE, EPS = 0.1, 1e-8


def weighted_mean(values: Sequence[np.ndarray], betas: Sequence[float]) -> np.ndarray:
    """The bias-corrected moving average of a history, each step's beta its own: weights by definition, sum 1."""
    weights = np.array([(1 - beta) * np.prod(betas[at + 1 :]) for at, beta in enumerate(betas)])
    return np.tensordot(weights / weights.sum(), np.array(values), axes=1)


def adam_by_hand(
    history: np.ndarray, beta1: Sequence[float], beta2: Sequence[float], *, first: int = 0, second: int = 0
) -> np.ndarray:
    """Update of the last step; moments averaged from step `first` and `second` of the history on."""
    mean = weighted_mean(list(history[first:]), beta1[first:])
    square = weighted_mean(list(history[second:] ** 2), beta2[second:])
    return RATE * mean / (np.sqrt(square) + EPS)


def update_of(training: Training) -> np.ndarray:
    before = torch.cat([parameter.detach().clone() for parameter in training.parameters])
    training.advance()
    return (before - torch.cat([parameter.detach() for parameter in training.parameters])).double().numpy()


def history(training: Training) -> np.ndarray:
    return training.module.table[1 : training.step + 1].double().numpy()  # type: ignore[index]


def test_the_hand_written_adam_is_torchs(toy: Toy) -> None:
    training = toy(kind="adam", start=7, betas=(0.9, 0.99))
    for _ in range(3):
        update = update_of(training)
        n = training.step
        assert update == pytest.approx(adam_by_hand(history(training), [0.9] * n, [0.99] * n), rel=2e-4)


def test_beta2_changed_midway_keeps_the_second_moment_and_its_correction_exact(toy: Toy) -> None:
    training = toy("beta2=0.9", kind="adam", start=7, betas=(0.9, 0.999))
    corrected = [
        state["exp_avg_sq"] / (1 - 0.9 ** float(state["step"])) for state in training.optimizer.state.values()
    ]
    as_was = toy(kind="adam", start=7, betas=(0.9, 0.999))
    expected = [
        state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"])) for state in as_was.optimizer.state.values()
    ]
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(corrected, expected, strict=True))
    # And every later step: not a plain average with known weights, but the old average forgotten at the new pace.
    square = weighted_mean(list(history(training) ** 2), [0.999] * 7)
    old = 1 - 0.9**7  # the weight that the rescaled average has
    for _ in range(4):
        update = update_of(training)
        newest = history(training)[-1]
        square, old = (
            (0.9 * old * square + 0.1 * newest**2) / (0.9 * old + 0.1),
            0.9 * old + 0.1,
        )
        mean = weighted_mean(list(history(training)), [0.9] * training.step)
        assert update == pytest.approx(RATE * mean / (np.sqrt(square) + EPS), rel=1e-3)


def test_without_the_rescaling_the_change_itself_would_have_been_a_spike(toy: Toy) -> None:
    gentle = np.abs(update_of(toy("beta2=0.5", kind="adam", start=3, betas=(0.9, 0.999)))).max()
    naive = toy(kind="adam", start=3, betas=(0.9, 0.999))
    for group in naive.optimizer.param_groups:
        group["betas"] = (0.9, 0.5)
    assert gentle < 2.0 * RATE
    assert np.abs(update_of(naive)).max() > 1.2 * gentle


def test_beta1_changed_midway_keeps_the_first_moment(toy: Toy) -> None:
    training = toy("beta1=0.5", kind="adamw", start=5, betas=(0.9, 0.99), weight_decay=0.0)
    mean = weighted_mean(list(history(training)), [0.9] * 5)
    square = weighted_mean(list(history(training) ** 2), [0.99] * 5)
    for state, at in zip(training.optimizer.state.values(), (0, 2), strict=True):
        corrected = state["exp_avg"] / (1 - 0.5**5)
        assert corrected.double().numpy() == pytest.approx(mean[at : at + 2], rel=1e-4)
        assert (state["exp_avg_sq"] / (1 - 0.99**5)).double().numpy() == pytest.approx(
            square[at : at + 2], rel=1e-4
        )
    assert training.optimizer.param_groups[0]["betas"] == (0.5, 0.99)


def test_a_beta_that_is_there_already_changes_nothing_bitwise(toy: Toy) -> None:
    same, as_was = toy("beta1=0.9+beta2=0.999", kind="adam", start=5), toy(kind="adam", start=5)
    assert np.array_equal(update_of(same), update_of(as_was))


def test_eps_damps_small_gradients(toy: Toy) -> None:
    gradients = torch.full((5, 4), 1e-3)
    update = update_of(toy("eps=1e-3", kind="adam", gradients=gradients))
    assert update == pytest.approx(np.full(4, RATE * 1e-3 / (1e-3 + 1e-3)), rel=1e-4)


def test_weight_decay_replaces_the_runs_own_only_where_there_was_some(toy: Toy) -> None:
    gradients = torch.zeros(5, 4)
    groups = [{"weight_decay": 0.01}, {"weight_decay": 0.0}]
    update = update_of(toy("weight-decay=0.5", kind="adamw", gradients=gradients, groups=groups))
    assert update == pytest.approx([RATE * 0.5] * 2 + [0.0] * 2)  # weights of 1 shrink by eta times the decay
    everywhere = update_of(
        toy("weight-decay=0.5", kind="adamw", gradients=gradients, groups=[{"weight_decay": 0.0}] * 2)
    )
    assert everywhere == pytest.approx([RATE * 0.5] * 4)
    plain = update_of(toy("weight-decay=0.5", kind="sgd", gradients=gradients))
    assert plain == pytest.approx([RATE * 0.5] * 4)
    none = update_of(toy("weight-decay=0", kind="adamw", gradients=gradients, groups=groups))
    assert none == pytest.approx([0.0] * 4)


def test_resetting_both_moments_is_bitwise_an_optimizer_without_its_state(start: Start) -> None:
    reset = start.training(Recipe(start.kinds[0]), make_policies("reset-moments"))
    fresh = start.training(Recipe(start.kinds[0], fresh_state=True))
    losses = [float(reset.advance().loss) for _ in range(4)]  # type: ignore[arg-type]
    fresh = start.training(Recipe(start.kinds[0], fresh_state=True))
    assert losses == [float(fresh.advance().loss) for _ in range(4)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("which", "first", "second"), [("first", 6, 0), ("second", 0, 6), ("both", 6, 6)])
def test_a_forgotten_moment_is_averaged_over_the_steps_since_and_the_other_goes_on(
    toy: Toy, which: str, first: int, second: int
) -> None:
    training = toy(f"reset-moments={which}", kind="adam", start=6, betas=(0.9, 0.99))
    for _ in range(6):
        update = update_of(training)
        n = training.step
        expected = adam_by_hand(history(training), [0.9] * n, [0.99] * n, first=first, second=second)
        assert update == pytest.approx(expected, rel=1e-3)


def test_a_moment_that_is_not_finite_is_forgotten_too(toy: Toy) -> None:
    training = toy("reset-moments=second", kind="adam", start=6, betas=(0.9, 0.99))
    for state in training.optimizer.state.values():
        state["exp_avg_sq"].fill_(float("inf"))
    expected = adam_by_hand(training.module.table[1:8].double().numpy(), [0.9] * 7, [0.99] * 7, second=6)  # type: ignore[index]
    assert update_of(training) == pytest.approx(expected, rel=1e-3)


def test_a_reset_of_one_moment_waits_for_a_real_update(toy: Toy) -> None:
    training = toy("skip=7-9+reset-moments=first", kind="adam", start=6, betas=(0.9, 0.99))
    for _ in range(3):
        training.advance()
    table = training.module.table[1:].double().numpy()  # type: ignore[index]
    update = update_of(training)
    seen = np.concatenate([table[:6], table[9:10]])
    assert update == pytest.approx(adam_by_hand(seen, [0.9] * 7, [0.99] * 7, first=6), rel=1e-3)


def test_a_beta_set_beside_a_reset_wins_in_either_order(toy: Toy) -> None:
    for spelling in ("beta2=0.5+reset-moments=second", "reset-moments=second+beta2=0.5"):
        training = toy(spelling, kind="adam", start=6, betas=(0.9, 0.99))
        for _ in range(3):
            update = update_of(training)
        expected = adam_by_hand(history(training), [0.9] * 9, [0.5] * 9, second=6)
        assert update == pytest.approx(expected, rel=1e-3)


def test_sgd_forgets_its_momentum(toy: Toy) -> None:
    training = toy("reset-moments=first", kind="sgd", start=6, momentum=0.9)
    assert update_of(training) == pytest.approx(RATE * history(training)[-1], rel=1e-4)


@pytest.mark.parametrize("spelling", ["beta1=0.5", "beta2=0.5", "eps=1e-6", "reset-moments=second"])
def test_what_only_adam_has_is_refused_for_sgd(toy: Toy, spelling: str) -> None:
    with pytest.raises(UsageError, match="SGD") as refused:
        toy(spelling, kind="sgd", momentum=0.9, start=2)
    assert refused.value.remedy


def test_resetting_moments_that_are_not_there_is_refused_instead_of_doing_nothing(toy: Toy) -> None:
    with pytest.raises(UsageError, match="no moments"):
        toy("reset-moments", kind="adam")
    with pytest.raises(UsageError, match="no moments"):
        toy("reset-moments", kind="sgd", start=3)


@pytest.mark.parametrize(
    "spelling",
    [
        "beta1=1",
        "beta2=-0.1",
        "beta2",
        "eps=0",
        "eps=-1e-8",
        "weight-decay=-1",
        "reset-moments=third",
        "reset-moments=",
    ],
)
def test_values_out_of_range_are_refused(spelling: str) -> None:
    with pytest.raises(UsageError):
        make_policies(spelling)


@pytest.mark.parametrize("spelling", ["beta1=0.5", "beta2=0.5", "eps=1e-3", "reset-moments"])
def test_s_is_measured_anew_after_the_optimizer_was_changed(toy: Toy, spelling: str) -> None:
    measured: list[int] = []

    def measure(training: Training) -> Stability:
        measured.append(training.step)
        return Stability(1.0, 0.1, {})

    training = toy(kind="adam", start=3, measure=measure)
    training.stability()
    training.stability()
    assert measured == [3]
    for policy in make_policies(spelling):
        policy.begin(training)
    training.stability()
    assert measured == [3, 3]
