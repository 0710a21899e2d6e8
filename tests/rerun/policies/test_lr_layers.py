"""Per-layer rates: against a matrix whose spectrum is known, and measured on the tiny run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hnf_offline.errors import UsageError
from hnf_offline.linalg.stopping import ACCURACIES, StopRule
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.optimizer import RATIO
from hnf_offline.rerun.policies.layer_units import units_of
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.stability import stability_of
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Stability, Training

FUSED = "transformer.h.0.attn.c_attn"


def factors_of(training: Training) -> dict[str, float]:
    return {
        training.names[parameter]: group[RATIO]
        for group in training.optimizer.param_groups
        for parameter in group["params"]
    }


class Coupled:
    """A Hessian with one direction a unit: M between the units, seen through the layers' present factors.

    A fused projection's share is split evenly among its parts, as a profile would report it by layer.
    """

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix
        self.ratios: list[float] = []

    def scaled(self, training: Training) -> np.ndarray:
        factors = factors_of(training)
        roots = np.sqrt([factors[unit.parameters[0]] for unit in units_of(training.module)])
        scaled: np.ndarray = roots[:, None] * self.matrix * roots[None, :]
        return scaled * training.learning_rate_of(training.step + 1) / 3e-3

    def __call__(self, training: Training) -> Stability:
        scaled = self.scaled(training)
        values, vectors = np.linalg.eigh(scaled)
        units = units_of(training.module)
        mass = {
            path: float(vectors[at, -1] ** 2) / len(unit.layers)
            for at, unit in enumerate(units)
            for path in unit.layers
        }
        layers = {path: float(scaled[at, at]) for at, unit in enumerate(units) for path in unit.layers}
        self.ratios.append(float(values[-1]))
        return Stability(
            float(values[-1]), training.learning_rate_of(training.step + 1), mass, lambda: layers
        )


def looked(start: Start, spelling: str, measure: Callable[[Training], Any], steps: int = 0) -> Training:
    """A training under a policy, after its first look."""
    policies = make_policies(spelling)
    training = start.training(Recipe(start.kinds[0]), policies, measure_stability=measure)
    for policy in policies:
        policy.before(training, training.step + 1)
    for _ in range(steps):
        training.advance()
    return training


def units(start: Start) -> int:
    return len(units_of(start.session.module))


def test_query_key_and_value_of_a_fused_projection_are_one_unit(start: Start) -> None:
    found = units_of(start.session.module)
    (fused,) = [unit for unit in found if f"{FUSED}.query" in unit.layers]
    assert fused.layers == (f"{FUSED}.query", f"{FUSED}.key", f"{FUSED}.value")
    assert fused.parameters == (f"{FUSED}.weight", f"{FUSED}.bias")
    names = [name for unit in found for name in unit.parameters]
    assert sorted(names) == sorted(name for name, _ in start.session.module.named_parameters())


def test_mass_in_one_layer_slows_that_layer_alone_and_exactly(start: Start) -> None:
    matrix = np.zeros((units(start), units(start)))
    matrix[4, 4] = 4.0
    training = looked(start, "lr-layers-mass=0.8,0,8", Coupled(matrix))
    heavy = set(units_of(training.module)[4].parameters)
    for name, factor in factors_of(training).items():
        assert factor == pytest.approx(0.2 if name in heavy else 1.0)


def test_mass_spread_evenly_slows_all_layers_alike_and_exactly(start: Start) -> None:
    size = units(start)
    measure = Coupled(np.full((size, size), 4.0 / size))  # one direction, S = 4
    training = looked(start, "lr-layers-mass=0.8,0,8", measure)
    assert list(factors_of(training).values()) == pytest.approx([0.2] * len(training.names))
    assert measure.ratios == [pytest.approx(4.0), pytest.approx(0.8)]


def test_the_first_round_is_the_closed_form(start: Start) -> None:
    size = units(start)
    direction = np.arange(1.0, size + 1)
    direction /= np.linalg.norm(direction)
    shares, excess = direction**2, 2.0 / 1.9 - 1
    measure = Coupled(2.0 * np.outer(direction, direction))  # S = 2, so little to do that one round is enough
    training = looked(start, "lr-layers-mass=1.9,0,8", measure)
    factors = factors_of(training)
    for unit, share in zip(units_of(training.module), shares, strict=True):
        expected = 1 / (1 + excess * share / (shares**2).sum())
        assert [factors[name] for name in unit.parameters] == pytest.approx([expected] * len(unit.parameters))


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 15), target=st.floats(0.01, 3.0))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_s_falls_to_the_target_and_never_below_it(start: Start, seed: int, rank: int, target: float) -> None:
    drawn = np.random.default_rng(seed).standard_normal((units(start), rank))
    matrix = drawn @ drawn.T
    matrix *= 3.0 / np.linalg.eigvalsh(matrix)[-1]
    measure = Coupled(matrix)
    looked(start, f"lr-layers-mass={target},0,8", measure)
    assert measure.ratios[0] == pytest.approx(3.0)
    assert measure.ratios[-1] <= max(1.05 * target, 1e-9) * (1 + 1e-9)
    assert measure.ratios[-1] >= min(target, 3.0) * (1 - 1e-9)
    assert measure.ratios == sorted(measure.ratios, reverse=True)
    assert len(measure.ratios) <= 13


def test_layers_each_unstable_by_itself_share_what_twelve_rounds_leave(start: Start) -> None:
    measure = Coupled(2.0 * np.eye(units(start)))
    looked(start, "lr-layers-mass=0.5,0,8", measure)
    assert measure.ratios[-1] == pytest.approx(0.5, rel=0.05)


def test_the_floor_holds_and_ends_the_search(start: Start) -> None:
    matrix = np.zeros((units(start), units(start)))
    matrix[4, 4] = 100.0
    measure = Coupled(matrix)
    training = looked(start, "lr-layers-mass=0.8,0.1,8", measure)
    assert min(factors_of(training).values()) == 0.1
    assert len(measure.ratios) == 2


def test_a_calm_model_keeps_its_rates_and_a_schedule_that_jumps_is_looked_at_at_once(start: Start) -> None:
    size = units(start)
    measure = Coupled(np.full((size, size), 0.5 / size))
    policies = make_policies("lr-scale=1+lr-layers-mass")
    training = start.training(Recipe(start.kinds[0]), policies, measure_stability=measure)
    training.advance()
    training.advance()
    assert set(factors_of(training).values()) == {1.0}
    assert len(measure.ratios) == 1
    policies[0].factor = 10.0  # type: ignore[attr-defined]
    training.advance()
    assert measure.ratios[1:] == [pytest.approx(5.0), pytest.approx(0.8)]
    assert list(factors_of(training).values()) == pytest.approx([0.16] * len(training.names))
    training.advance()  # S stays at the target: no look until it is due
    assert len(measure.ratios) == 3


def test_the_factors_follow_the_curvature_up_again(start: Start) -> None:
    size = units(start)
    measure = Coupled(np.full((size, size), 4.0 / size))
    training = looked(start, "lr-layers-mass=0.8,0,2", measure)
    training.advance()
    measure.matrix = measure.matrix / 100
    training.advance()
    training.advance()
    assert set(factors_of(training).values()) == {1.0}


def test_the_source_documents_formula_halves_a_layer_at_half(start: Start) -> None:
    matrix = np.diag(np.linspace(0.0, 3.0, units(start)))
    measure = Coupled(matrix)
    training = looked(start, "lr-layers=0.5", measure)
    factors = factors_of(training)
    for unit, own in zip(units_of(training.module), np.diag(matrix), strict=True):
        expected = 1 / (1 + own / 0.5)
        assert [factors[name] for name in unit.parameters] == pytest.approx([expected] * len(unit.parameters))
    assert (np.diag(measure.scaled(training)) < 0.5).all()


def test_a_fused_weight_takes_the_smallest_factor_of_its_parts(start: Start) -> None:
    layers = {
        f"{FUSED}.query": 1.0,
        f"{FUSED}.key": 3.0,
        f"{FUSED}.value": -5.0,
        "transformer.ln_f": float("nan"),
    }

    def measure(training: Training) -> Stability:
        return Stability(1.0, 3e-3, {}, lambda: layers)

    factors = factors_of(looked(start, "lr-layers", measure))
    assert factors[f"{FUSED}.weight"] == factors[f"{FUSED}.bias"] == pytest.approx(0.25)
    assert all(factor == 1.0 for name, factor in factors.items() if FUSED not in name)


def test_lr_layers_is_refused_where_only_the_whole_is_measured(start: Start) -> None:
    with pytest.raises(UsageError, match="layers' own") as refused:
        looked(start, "lr-layers", lambda training: Stability(1.0, 3e-3, {}))
    assert "lr-layers-mass" in str(refused.value.remedy)


def test_layer_factors_reach_the_update(start: Start) -> None:
    matrix = np.zeros((units(start), units(start)))
    matrix[0, 0] = 4.0  # the embedding's share only
    measure = Coupled(matrix)

    def moved(training: Training) -> Mapping[str, float]:
        before = {name: value.detach().clone() for name, value in training.module.named_parameters()}
        training.advance()
        return {
            name: float((value - before[name]).detach().norm())
            for name, value in training.module.named_parameters()
        }

    slow = moved(looked(start, "lr-layers-mass=0.8,0,8", measure))
    as_was = moved(start.training(Recipe(start.kinds[0])))
    for name, distance in slow.items():
        assert distance == pytest.approx(as_was[name] * (0.2 if "wte" in name else 1.0), rel=1e-3)


@pytest.fixture
def measured(start: Start, monkeypatch: pytest.MonkeyPatch) -> Callable[[Training], Stability | None]:
    monkeypatch.setitem(ACCURACIES, "careful", StopRule(0.01, 3, maximum=60))
    return stability_of(start.session, ProfileSettings(tier="stability", device="cpu", accuracy="careful"))


def test_on_the_tiny_run_s_measured_afterwards_is_at_the_target(
    start: Start, measured: Callable[[Training], Stability | None]
) -> None:
    first = measured(start.training(Recipe(start.kinds[0])))
    assert first is not None
    target = first.ratio / 3
    training = looked(start, f"lr-layers-mass={target!r},0,8", measured)
    after = training.stability()
    assert after is not None
    assert 0.97 * target <= after.ratio <= 1.06 * target
    factors = factors_of(training)
    heaviest = max(first.mass, key=lambda path: first.mass[path])
    lightest = min(first.mass, key=lambda path: first.mass[path])
    # Slowed down most where the direction lives, hardly where it does not.
    assert min(factors[name] for name in factors if name.startswith(heaviest)) < 0.35
    if ".c_attn." not in lightest:
        assert min(factors[name] for name in factors if name.startswith(lightest)) > 0.9


def test_on_the_tiny_run_the_controller_and_s_agree(
    start: Start, measured: Callable[[Training], Stability | None]
) -> None:
    first = measured(start.training(Recipe(start.kinds[0])))
    assert first is not None
    policies = make_policies(f"lr-controller={first.ratio / 2!r}")
    training = start.training(Recipe(start.kinds[0]), policies, measure_stability=measured)
    assert training.advance().learning_rate == pytest.approx(3e-3 / 2, rel=1e-3)
    as_was = start.training(Recipe(start.kinds[0]))
    assert as_was.advance().learning_rate == pytest.approx(3e-3)


@pytest.mark.slow
def test_on_the_tiny_run_every_layers_own_s_falls_as_the_formula_says(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACCURACIES, "loose", StopRule(0.1, 3, maximum=10))
    loose = stability_of(start.session, ProfileSettings(tier="stability", device="cpu", accuracy="loose"))
    first = loose(start.training(Recipe(start.kinds[0])))
    assert first is not None and first.layers is not None
    before = first.layers()
    half = max(before.values())
    known = Stability(first.ratio, first.learning_rate, first.mass, lambda: before)
    training = looked(start, f"lr-layers={half!r}", lambda training: known)
    after = loose(training)
    assert after is not None and after.layers is not None
    assert after.ratio <= first.ratio * 1.05
    for path, ratio in after.layers().items():
        own = max(before[path], 0.0)
        if ".c_attn." in path or own < 1e-3:
            assert ratio <= own * 1.2 + 1e-4
        else:
            assert ratio == pytest.approx(own / (1 + own / half), rel=0.2)
