from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hnf_offline.findings import Spike
from hnf_offline.relate.localise import _mass, first_layer
from hnf_offline.table import Row, table

from .planted import spike

LAYERS = tuple(f"layers.{k}.{part}" for k in range(3) for part in ("q", "k", "up", "down"))
STEPS = np.arange(8, 208, 8)
ONSET = 201


def masses(moved: str | None, since: int = 168, seed: int = 0) -> pl.DataFrame:
    """Absolute mass is highest in layers.0.q throughout; one layer's share grows from `since` on."""
    random = np.random.default_rng(seed)
    rows = []
    for step in STEPS:
        share = np.full(len(LAYERS), 0.05)
        share[0] = 0.45
        share *= np.exp(0.05 * random.normal(size=share.size))
        if moved is not None and step >= since:
            share[LAYERS.index(moved)] += 0.05 * (step - since + 8)
        share /= share.sum()
        rows += [
            Row(int(step), layer, "other", depth, "hessian.unstable_mass", float(value))
            for depth, (layer, value) in enumerate(zip(LAYERS, share, strict=True))
        ]
    return table(rows)


def ratios(factor: dict[str, float], everywhere: float = 1.0) -> pl.DataFrame:
    random = np.random.default_rng(1)
    return table(
        Row(
            int(step),
            layer,
            "other",
            depth,
            "hessian.stability_ratio",
            (0.1 + 0.01 * depth)
            * np.exp(0.05 * random.normal())
            * ((factor.get(layer, 1.0) * everywhere) if step >= 184 else 1.0),
        )
        for step in STEPS
        for depth, layer in enumerate(LAYERS)
    )


@pytest.mark.parametrize("moved", ["layers.1.up", "layers.2.k", "layers.0.q"])
def test_the_layer_whose_share_grew_is_named_not_the_one_with_the_largest(moved: str) -> None:
    found = first_layer(masses(moved), spike(1, ONSET))
    assert found is not None
    assert found.layer == moved
    assert found.quantity == "hessian.unstable_mass_change"
    assert 168 <= found.step <= 192
    assert moved in found.evidence
    assert "unstable direction lives" in found.evidence
    assert "cause" not in found.evidence


@pytest.mark.parametrize("seed", range(5))
def test_no_layer_is_named_when_none_stands_out(seed: int) -> None:
    assert first_layer(masses(None, seed=seed), spike(1, ONSET)) is None


def test_the_ratio_to_its_baseline_names_the_layer_where_mass_is_not_known() -> None:
    found = first_layer(ratios({"layers.1.down": 4.0}), spike(1, ONSET))
    assert found is not None
    assert (found.layer, found.quantity, found.step) == ("layers.1.down", "hessian.stability_ratio", 184)


def test_a_learning_rate_jump_moves_all_layers_and_names_none() -> None:
    assert first_layer(ratios({}, everywhere=20.0), spike(1, ONSET)) is None


def test_what_happens_after_the_onset_is_not_seen() -> None:
    assert first_layer(masses("layers.1.up", since=208), spike(1, ONSET)) is None
    late = masses("layers.1.up", since=120)
    assert first_layer(late.filter(pl.col("step") < 120), spike(1, 115)) is None


def changes(profile: pl.DataFrame, spikes: tuple[Spike, ...] = ()) -> dict[tuple[str, int], float]:
    found = _mass(profile, spikes)
    return {
        (layer, int(step)): float(found.change[k, j])
        for k, step in enumerate(found.steps)
        for j, layer in enumerate(found.layers)
        if np.isfinite(found.change[k, j])
    }


def test_the_change_of_mass_is_against_the_median_of_earlier_checkpoints_only() -> None:
    profile = masses("layers.1.up")
    change = changes(profile)
    assert {layer for layer, _ in change} == set(LAYERS)
    assert min(step for _, step in change) == STEPS[3], "three earlier checkpoints make a baseline"
    early = changes(profile.filter(pl.col("step") <= 100))
    assert early == {key: value for key, value in change.items() if key[1] <= 100}
    by_hand = profile.filter(pl.col("layer") == "layers.1.up")["value"].to_numpy()
    assert change["layers.1.up", STEPS[-1]] == pytest.approx(by_hand[-1] - np.median(by_hand[:-1]))


def test_checkpoints_inside_a_spike_enter_no_baseline() -> None:
    profile = masses(None)
    values = profile.filter(pl.col("layer") == "layers.0.q")["value"].to_numpy()
    outside = (STEPS < 40) | (STEPS > 100)
    expected = values[-1] - np.median(values[outside][:-1])
    assert changes(profile, (spike(1, 40, steps=60),))["layers.0.q", 200] == pytest.approx(expected)


def test_nothing_measured_gives_nothing() -> None:
    assert first_layer(table(), spike(1, 100)) is None
    blind = table([Row(8, "a", "other", 0, "hessian.unstable_mass", float("nan"))] * 1)
    assert changes(blind) == {}
    assert first_layer(blind, spike(1, 100)) is None
