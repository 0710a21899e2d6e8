"""What-ifs: the first arm is the run, arms do not disturb each other, and an effect is more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hnf_offline.errors import InputError, UsageError
from hnf_offline.profile.settings import ProfileSettings, Progress
from hnf_offline.rerun.whatif import StoppedError, whatif
from hnf_offline.rerun.zoom import Zoomed
from hnf_offline.retraining import EXACT, NOT_REPRODUCIBLE, Arm, Retraining
from hnf_offline.run import open_run

SETTINGS = ProfileSettings(tier="stability", device="cpu", rows=12)


def asked(
    path: Path, *policies: str, start: int = 10, steps: int = 10, every: int = 0, **options: object
) -> Retraining:
    return whatif(
        open_run(path), start=start, steps=steps, policies=policies, settings=SETTINGS, every=every, **options
    )  # type: ignore[arg-type]


def arms_of(done: Retraining) -> dict[str, Arm]:
    return {arm.policy: arm for arm in done.arms}


def test_as_was_is_what_a_zoom_gives(recorded: Path, tried: Callable[..., Zoomed]) -> None:
    (arm,), (other,) = asked(recorded, every=5).arms, tried(recorded, 10, 20, every=5).retraining.arms
    assert (arm.policy, arm.steps, arm.loss) == ("as was", other.steps, other.loss)
    assert (arm.grad_norm, arm.learning_rate) == (other.grad_norm, other.learning_rate)
    assert arm.stability_steps == other.stability_steps == (10, 15, 20)
    assert arm.stability_ratio == pytest.approx(other.stability_ratio, rel=1e-4)


def test_as_was_gives_the_logged_losses(recorded: Path) -> None:
    done = asked(recorded, "lr-scale=0.5", steps=20)
    logged = open_run(recorded).log.rows.filter((s := open_run(recorded).log.rows["step"]).is_between(11, 30))  # type: ignore[union-attr]  # noqa: F841
    assert done.reproduction.word == EXACT
    assert done.arms[0].loss == pytest.approx(logged["loss"].to_list(), rel=1e-6)


def test_the_first_loss_is_that_of_the_run_under_every_policy(recorded: Path) -> None:
    arms = asked(recorded, "lr-scale=0.1", "clip=0.1", "reset-moments").arms
    assert len({arm.loss[0] for arm in arms}) == 1
    assert len({arm.loss[-1] for arm in arms}) == 4


@pytest.mark.parametrize("dropout", [False, True])
def test_the_order_of_policies_does_not_matter(
    recorded: Path, record_dropout: Callable[..., Path], dropout: bool
) -> None:
    path = record_dropout() if dropout else recorded
    one = arms_of(asked(path, "lr-scale=0.1", "precision=bf16", "skip=13", every=10))
    other = arms_of(asked(path, "skip=13", "lr-scale=0.1", "precision=bf16", every=10))
    assert {name: (arm.loss, arm.stability_ratio) for name, arm in one.items()} == {
        name: (arm.loss, arm.stability_ratio) for name, arm in other.items()
    }


def test_looking_changes_nothing(record_dropout: Callable[..., Path]) -> None:
    path = record_dropout(random_states=True)
    blind, watched = asked(path, "lr-scale=0.5"), asked(path, "lr-scale=0.5", every=1)
    assert [arm.loss for arm in blind.arms] == [arm.loss for arm in watched.arms]
    assert [len(arm.stability_steps) for arm in watched.arms] == [11, 11]


def test_an_effect_is_clear_only_outside_the_band(recorded: Path) -> None:
    arms = arms_of(asked(recorded, "lr-scale=1.0", "lr-scale=0.1", twins=2))
    assert (arms["as was"].clear, arms["lr-scale=1.0"].clear, arms["lr-scale=0.1"].clear) == (
        None,
        False,
        True,
    )


def test_without_twins_no_effect_is_called_clear_or_not(recorded: Path) -> None:
    done = asked(recorded, "lr-scale=0.1")
    assert (done.twins, done.arms[1].clear) == (None, None)


def test_a_policy_that_kills_the_run_says_so(recorded: Path) -> None:
    arm = asked(recorded, "lr-constant=1e30", twins=1).arms[1]
    assert "the loss is nan from step" in arm.outcome or "the loss is inf from step" in arm.outcome
    assert arm.clear is True


def test_a_policy_that_makes_a_spike_says_where(record: Callable[..., Path]) -> None:
    done = asked(record(steps=60), "lr-constant=0.3", start=40, steps=20)
    was, wild = done.arms
    assert (was.spikes, was.outcome.split(",")[0]) == ((), "no spike")
    assert wild.spikes
    assert 40 < wild.spikes[0].onset <= 45
    assert f"spike at step {wild.spikes[0].onset}" in wild.outcome
    assert wild.outcome.endswith(f"instead of {was.loss[-1]:.3g}")


def test_what_is_not_the_run_is_said_not_to_be(record: Callable[..., Path], plant: SimpleNamespace) -> None:
    path = record()
    plant.drop_state(path, 10)
    done = asked(path, "lr-scale=0.1", twins=2)
    assert done.reproduction.word == NOT_REPRODUCIBLE
    assert done.twins is not None
    assert done.twins.kind == "statistical"
    assert any("not the run" in note for note in done.notes)


def test_fewer_batches_than_steps_are_said(recorded: Path) -> None:
    done = asked(recorded, start=30, steps=50)
    assert (done.stop, done.notes) == (40, ("the batches end at step 40, so 10 steps were taken",))


@pytest.mark.parametrize("wrong", [("lr-scale=0.1", "lr-scale=0.1"), ("lr-skale=0.1",), ("lr-scale=-1",)])
def test_wrong_policies_are_refused_before_anything_is_trained(
    recorded: Path, wrong: tuple[str, ...]
) -> None:
    told: list[Progress] = []
    with pytest.raises(UsageError):
        asked(recorded, *wrong, on_progress=told.append)
    assert told == []


def test_no_model_is_refused(record: Callable[..., Path]) -> None:
    path = record(steps=10)
    (path / "config.json").unlink()
    with pytest.raises(InputError, match="has no model"):
        asked(path)


def test_stopping_keeps_the_arms_that_are_done(recorded: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(StoppedError) as stopped:
        asked(recorded, "lr-scale=0.5", "lr-scale=0.1", on_progress=stop)
    done = stopped.value.retraining
    assert [arm.policy for arm in done.arms] == ["as was", "lr-scale=0.5"]
    assert any("1 of 2 policies" in note for note in done.notes)


def test_stopping_in_the_first_arm_gives_nothing(recorded: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        asked(recorded, "lr-scale=0.5", on_progress=stop)
    assert not isinstance(stopped.value, StoppedError)


def test_it_is_told_as_strict_json(recorded: Path) -> None:
    told = asked(recorded, "lr-constant=1e30", twins=1).to_json()
    assert (told["verdict"], told["from"], told["to"]) == (EXACT, 10, 20)
    assert all(loss is None or math.isfinite(loss) for arm in told["arms"] for loss in arm["loss"])
