"""Every policy of the catalogue: complete, buildable, effective, and gone without a trace when it is over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.errors import UsageError
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.policies.families import FAMILIES
from hnf_offline.rerun.policies.policy import Policy
from hnf_offline.rerun.policies.registry import catalogue, entries_of, make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start, open_start
from hnf_offline.rerun.training import Stability, Training
from hnf_offline.run.model.layers import layers_of

NAMES = tuple(catalogue())
#: Spellings that act within a few steps of the tiny run, where the example is made for another run.
ACTING = {
    "lr-cap": "lr-cap=1e-3",
    "lr-cosine": "lr-cosine=10",
    "skip": "skip=32",
    "rollback-skip": "rollback-skip=5",
    "zclip": "zclip=0.1",
    "qk-rescale": "qk-rescale=0.01",
    "spectral-cap": "spectral-cap=0.1",
    "koopman-shaping": "koopman-shaping=1,every=1",
    "scaler": "scaler=1e38,2,1",
}
#: What the policy alone has to differ from, where its spelling brings more than itself.
BESIDE = {"scaler": "precision=fp16"}
STEPS = 5


@pytest.fixture
def late(start: Start) -> Start:
    """The tiny run's checkpoint of step 30: its log has enough norms for ZClip by then."""
    return open_start(start.run, start.session, 30)


def known_stability(training: Training) -> Stability:
    """S of 2 at the run's rate, everything in the first layer."""
    rate = training.learning_rate_of(training.step + 1)
    layers = layers_of(training.module)
    mass = {layer.path: float(at == 0) for at, layer in enumerate(layers)}
    return Stability(2.0 * rate / 3e-3, rate, mass, lambda: dict.fromkeys(mass, 2.0))


def trained(start: Start, policies: Sequence[Policy] = ()) -> tuple[list[Tensor | None], list[Tensor]]:
    """Losses and weights of a few steps."""
    training = start.training(Recipe(start.kinds[0]), policies, measure_stability=known_stability)
    losses = [training.advance().loss for _ in range(STEPS)]
    weights = [parameter.detach().clone() for parameter in training.parameters]
    training.end()
    return losses, weights


def same(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_says_what_it_does_where_it_comes_from_and_what_it_costs(name: str) -> None:
    entry = catalogue()[name]
    for text in (entry.summary, entry.formula, entry.reference, entry.cost):
        assert len(text) > 5 and text == text.strip()
    assert entry.summary[0].isupper() and entry.summary.endswith(".")
    assert name == name.lower() and " " not in name and "+" not in name and "=" not in name


@pytest.mark.parametrize("name", NAMES)
def test_the_example_builds_that_very_policy(name: str) -> None:
    entry = catalogue()[name]
    assert entry.example.partition("=")[0] == name
    assert len(make_policies(entry.example)) == 1
    assert entries_of(entry.example) == (entry,)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_changes_the_run_and_leaves_no_trace_behind(late: Start, name: str) -> None:
    spelling = ACTING.get(name, catalogue()[name].example)
    _, as_was = trained(late, make_policies(BESIDE[name]) if name in BESIDE else ())
    _, changed = trained(late, make_policies(spelling))
    assert not same(as_was, changed)
    _, again = trained(late, make_policies(BESIDE[name]) if name in BESIDE else ())
    assert same(as_was, again)


@pytest.mark.parametrize("name", NAMES)
def test_two_trainings_under_a_policy_are_alike_even_with_the_same_instance(late: Start, name: str) -> None:
    spelling = ACTING.get(name, catalogue()[name].example)
    policies = make_policies(spelling)
    first, second, third = (trained(late, used) for used in (policies, policies, make_policies(spelling)))
    assert same(first[1], second[1]) and same(first[0], second[0])
    assert same(first[1], third[1]) and same(first[0], third[0])


def test_every_registered_file_is_there_in_order_and_none_is_registered_twice() -> None:
    assert list(FAMILIES) == sorted(set(FAMILIES))


@pytest.mark.parametrize("name", NAMES)
@given(value=st.one_of(st.text(max_size=30), st.from_regex(r"[-+.,:=0-9eE*a-z]{0,20}", fullmatch=True)))
@example(value="9" * 5000)
@example(value="1e999")
@example(value="nan,nan,nan")
@example(value="0.5,-1")
@example(value=",,,")
@example(value="0.5:99999999999999999999")
@settings(max_examples=60, deadline=None)
def test_no_value_whatsoever_crashes(name: str, value: str) -> None:
    try:
        made = make_policies(f"{name}={value}")
    except UsageError as error:
        assert str(error)
    else:
        assert all(isinstance(policy, Policy) for policy in made)


@pytest.mark.parametrize("spelling", ["", "+", "=", "lr-cap=1+", "lr-capp=1", "LR-CAP=1"])
def test_what_is_no_policy_is_refused_with_a_way_on(spelling: str) -> None:
    with pytest.raises(UsageError) as refused:
        make_policies(spelling)
    assert refused.value.remedy


def test_listing_the_policies_loads_neither_torch_nor_polars() -> None:
    code = (
        "import sys; from hnf_offline.rerun.policies.registry import catalogue; "
        "assert catalogue(); print([m for m in ('torch', 'polars', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_of_a_measurement_do_not_leak_into_the_training(late: Start) -> None:
    """Asking for S in the middle of a training leaves its steps bitwise as they were."""
    from hnf_offline.rerun.stability import stability_of

    measure = stability_of(late.session, ProfileSettings(tier="stability", device="cpu"))
    training = late.training(Recipe(late.kinds[0]), measure_stability=measure)
    for _ in range(STEPS):
        if training.step in {30, 32}:
            assert training.stability() is not None
        training.advance()
    weights = [parameter.detach().clone() for parameter in training.parameters]
    assert same(weights, trained(late)[1])
