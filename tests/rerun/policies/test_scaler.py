"""Gradient scaler: its scale grows and backs off as torch's does, and what it skips is counted."""

from __future__ import annotations

import pytest
import torch

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start


def test_the_scale_grows_after_as_many_clean_steps_as_asked(start: Start) -> None:
    (policy,) = make_policies("scaler=1024,1.5,2")
    training = start.training(Recipe(start.kinds[0]), [policy])
    assert training.precision == "float16"
    scales = []
    for _ in range(6):
        training.advance()
        assert training.scaler is not None
        scales.append(training.scaler.get_scale())
    assert scales == [1024, 1536, 1536, 2304, 2304, 3456]
    assert policy.notes() == (
        "0 of 6 updates skipped because a float16 gradient overflowed; the loss scale ended at 3456",
    )


def test_an_overflow_skips_the_update_and_halves_the_scale(start: Start) -> None:
    (policy,) = make_policies("scaler=1e30,2,2000")
    training = start.training(Recipe(start.kinds[0]), [policy])
    before = {name: value.clone() for name, value in training.module.state_dict().items()}
    training.advance()
    assert training.scaler is not None
    assert training.scaler.get_scale() == pytest.approx(0.5e30)
    assert all(torch.equal(value, before[name]) for name, value in training.module.state_dict().items())
    training.advance()
    assert policy.notes()[0].startswith("2 of 2 updates skipped")


def test_updates_begin_once_the_scale_fits(start: Start) -> None:
    """As torch means it: a large first scale costs some skipped updates, no divergence."""
    (policy,) = make_policies(f"scaler={2.0**32:.0f},2.0,2000")
    training = start.training(Recipe(start.kinds[0]), [policy])
    losses = [float(training.advance().loss) for _ in range(25)]  # type: ignore[arg-type]
    skipped = int(policy.notes()[0].split()[0])
    assert 0 < skipped < 20
    assert losses[-1] < losses[0]


def test_both_settings_of_the_source_document_train_alike_here(start: Start) -> None:
    def last(spelling: str) -> float:
        training = start.training(Recipe(start.kinds[0]), make_policies(spelling))
        return [float(training.advance().loss) for _ in range(10)][-1]  # type: ignore[arg-type]

    assert last("scaler=65536,2.0,100") == pytest.approx(last("scaler=1024,1.5,200"), abs=1e-3)


def test_after_precision_it_sets_the_scale(start: Start) -> None:
    for spelling in ("precision=fp16+scaler=512,2,100", "scaler=512,2,100+precision=fp16"):
        policies = make_policies(spelling)
        training = start.training(Recipe(start.kinds[0]), policies)
        training.advance()
        assert training.scaler is not None
        assert training.scaler.get_scale() == 512
        assert sum(len(policy.notes()) for policy in policies) == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("1024", "GROWTH is missing"),
        ("1024,1.5", "INTERVAL is missing"),
        ("1024,1,200", "GROWTH"),
        ("0,2,200", "INIT"),
        ("nan,2,200", "INIT"),
        ("1024,inf,200", "GROWTH"),
        ("1024,2,0", "INTERVAL"),
        ("1024,2,1.5", "INTERVAL"),
        ("1024,2,3,4", "one value too many"),
    ],
)
def test_settings_that_torch_would_refuse_are_refused_by_name(value: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        make_policies(f"scaler={value}")
    assert caught.value.remedy == "write scaler=1024,1.5,200"
