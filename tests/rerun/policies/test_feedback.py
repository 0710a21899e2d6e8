"""The S controller and the S ratchet, on an S that is known: proportional to the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hnf_offline.errors import UsageError
from hnf_offline.rerun.training import Stability, Training

Toy = Callable[..., Training]


class Sharpness:
    """S = rate x sharpness at the present step; counts how often it is asked."""

    def __init__(self, of_step: Callable[[int], float]) -> None:
        self.of_step = of_step
        self.asked: list[int] = []

    def __call__(self, training: Training) -> Stability:
        rate = training.learning_rate_of(training.step + 1)
        self.asked.append(training.step + 1)
        return Stability(self.of_step(training.step + 1) * rate, rate, {})


def rates_of(training: Training, steps: int) -> list[float | None]:
    return [training.advance().learning_rate for _ in range(steps)]


def test_the_controller_brings_s_to_its_target_and_never_raises_the_rate(toy: Toy) -> None:
    sharp = Sharpness(lambda step: 16.0)  # S of the run's rate .1 is 1.6
    assert rates_of(toy("lr-controller", measure=sharp), 10) == pytest.approx([0.05] * 10)
    assert sharp.asked == [1, 9]
    calm = Sharpness(lambda step: 4.0)  # S = .4
    assert rates_of(toy("lr-controller", measure=calm), 3) == [0.1] * 3


def test_the_controller_stops_at_its_floor_and_takes_its_settings(toy: Toy) -> None:
    sharp = Sharpness(lambda step: 1000.0)
    assert rates_of(toy("lr-controller", measure=sharp), 2) == pytest.approx([0.025] * 2)
    sharp = Sharpness(lambda step: 10.0)
    assert rates_of(toy("lr-controller=0.5,0.1,3", measure=sharp), 7) == pytest.approx([0.05] * 7)
    assert sharp.asked == [1, 4, 7]


def test_the_controller_follows_sharpness_down_again(toy: Toy) -> None:
    measure = Sharpness(lambda step: 16.0 if step < 9 else 4.0)
    rates = rates_of(toy("lr-controller", measure=measure), 12)
    assert rates == pytest.approx([0.05] * 8 + [0.1] * 4)


def test_the_controller_meets_a_jump_of_the_schedule_between_two_looks(toy: Toy) -> None:
    measure = Sharpness(lambda step: 4.0)
    rates = rates_of(toy("lr-controller=0.8,0.01", rates=[0.1, 0.1, 1.0, 1.0, 0.1], measure=measure), 5)
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.1])  # 4 x .2 = .8
    assert measure.asked == [1]


def test_an_s_that_is_no_number_leads_to_the_floor(toy: Toy) -> None:
    measure = Sharpness(lambda step: float("nan"))
    assert rates_of(toy("lr-controller", measure=measure), 2) == pytest.approx([0.025] * 2)


def test_the_controller_looks_again_until_s_can_be_told(toy: Toy) -> None:
    asked: list[int] = []

    def measure(training: Training) -> Stability | None:
        asked.append(training.step + 1)
        return None if training.step < 2 else Stability(1.6, 0.1, {})

    rates = rates_of(toy("lr-controller", measure=measure), 5)
    assert asked == [1, 2, 3]
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.05])


def test_after_a_warm_up_from_zero_the_controller_looks_at_the_first_rate_there_is(toy: Toy) -> None:
    measure = Sharpness(lambda step: 16.0)
    rates = rates_of(toy("lr-warmup=2+lr-controller", measure=measure), 4)
    assert rates == pytest.approx([0.0, 0.05, 0.05, 0.05])
    assert measure.asked[-1] == 2


def test_the_ratchet_falls_for_good_and_keeps_its_distance(toy: Toy) -> None:
    measure = Sharpness(lambda step: 11.0)  # S = 1.1, after one reduction .77, after two .54
    rates = rates_of(toy("lr-ratchet=0.7,4,0.2,2", measure=measure), 8)
    assert rates == pytest.approx([0.07] * 8)
    sharper = Sharpness(lambda step: 30.0)  # 3.0, 2.1, 1.47, 1.03, .72
    rates = rates_of(toy("lr-ratchet=0.7,4,0.2,2", measure=sharper), 20)
    expected = [0.07] * 4 + [0.049] * 4 + [0.0343] * 4 + [0.02401] * 8
    assert rates == pytest.approx(expected)


def test_the_ratchet_looks_every_eighth_step_and_stops_at_its_floor(toy: Toy) -> None:
    measure = Sharpness(lambda step: 1000.0)
    training = toy("lr-ratchet=0.5,1,0.2", measure=measure)
    rates = rates_of(training, 20)
    assert rates == pytest.approx([0.05] * 8 + [0.025] * 8 + [0.02] * 4)
    assert measure.asked == [1, 9, 17]


def test_the_ratchet_does_not_raise_the_rate_when_the_alarm_is_over(toy: Toy) -> None:
    measure = Sharpness(lambda step: 11.0 if step < 5 else 1.0)
    assert rates_of(toy("lr-ratchet", measure=measure), 20) == pytest.approx([0.07] * 20)


@pytest.mark.parametrize("spelling", ["lr-controller", "lr-ratchet", "lr-layers", "lr-layers-mass"])
def test_without_s_a_policy_that_follows_it_is_refused_instead_of_doing_nothing(
    toy: Toy, spelling: str
) -> None:
    with pytest.raises(UsageError, match="not measured") as refused:
        toy(spelling)
    assert refused.value.remedy


def test_a_skipped_step_does_not_skip_the_look(toy: Toy) -> None:
    measure = Sharpness(lambda step: 16.0)
    training = toy("skip=1+lr-controller", measure=measure)
    assert rates_of(training, 2) == [None, pytest.approx(0.05)]
    assert measure.asked == [1]


def test_s_after_the_controller_is_the_target_for_the_policies_that_follow(toy: Toy) -> None:
    measure = Sharpness(lambda step: 16.0)
    training = toy("lr-controller+lr-ratchet", measure=measure)
    rates: Sequence[float | None] = rates_of(training, 9)
    assert rates == pytest.approx([0.05] * 9)  # the ratchet sees S = .8: no alarm


def test_the_restored_cut_comes_back_and_comes_again(toy: Toy) -> None:
    sharp = Sharpness(lambda step: 16.0)  # S of the run's rate .1 is 1.6, of the halved one .8
    rates = rates_of(toy("lr-restore=0.5,5,4", measure=sharp), 16)
    assert rates == pytest.approx([0.05] * 5 + [0.1] * 3 + [0.05] * 5 + [0.1] * 3)
    assert sharp.asked == [1, 9], "what is cut already is not looked at again before it is restored"


def test_without_an_alarm_nothing_is_cut_for_a_while(toy: Toy) -> None:
    assert rates_of(toy("lr-restore", measure=Sharpness(lambda step: 9.9)), 12) == [0.1] * 12
