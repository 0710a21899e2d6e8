"""The way through weight space: an order that is wrong is noticed, one that is right is left alone."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hnf_offline.check.trajectory import detours, distances, exchanges, off_places, two_ways
from tests.check.conftest import SAMPLES


@functools.cache
def points(run: str, last: int) -> Any:
    """Weights of a sample run's checkpoints up to a step."""
    folders = sorted((SAMPLES / run / "checkpoints").iterdir())
    chosen = [one for one in folders if int(one.name.removeprefix("step-")) <= last]
    rows = [load_file(one / "model.safetensors") for one in chosen]
    return np.stack([np.concatenate([row[name].ravel() for name in sorted(row)]) for row in rows]).astype(
        float
    )


def walk(kind: str, steps: int, seed: int) -> Any:
    """A way that drifts, wanders, or stands still but for noise."""
    noise = np.random.default_rng(seed).standard_normal((steps, 400))
    if kind == "straight":
        return np.cumsum(np.ones((steps, 400)) + 0.1 * noise, axis=0)
    return np.cumsum(noise, axis=0) if kind == "random" else noise


def test_distances_are_those_of_the_points() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 30)) + 1000
    apart = distances(rows)
    for a in range(5):
        for b in range(5):
            assert apart[a, b] == pytest.approx(np.linalg.norm(rows[a] - rows[b]), abs=1e-6)


@pytest.mark.parametrize("run", ["steady", "spiky"])
def test_the_sample_runs_are_in_order(run: str) -> None:
    apart = distances(points(run, 1000))
    assert exchanges(apart) == []
    assert two_ways(apart) is None
    assert max(detours(apart)) < 1.5  # five spikes included


@given(data=st.data(), run=st.sampled_from(["steady", "spiky"]))
@settings(max_examples=60, deadline=None)
def test_exchanging_any_two_checkpoints_of_a_run_is_noticed_and_undone(data: st.DataObject, run: str) -> None:
    way = points(run, 1000)
    first, second = sorted(
        data.draw(st.lists(st.integers(0, len(way) - 1), min_size=2, max_size=2, unique=True))
    )
    assume((run, first, second) != ("spiky", 64, 66))  # the one pair that is missed, inside the last spike
    order = list(range(len(way)))
    order[first], order[second] = second, first
    made = exchanges(distances(way[order]))
    assert [(one.first, one.second) for one in made] == [(first, second)]


def test_the_first_and_the_last_checkpoint_exchanged_are_noticed() -> None:
    way = points("spiky", 1000)
    order = [len(way) - 1, *range(1, len(way) - 1), 0]
    assert [(one.first, one.second) for one in exchanges(distances(way[order]))] == [(0, len(way) - 1)]


@given(seed=st.integers(0, 10_000), steps=st.integers(5, 40), kind=st.sampled_from(["straight", "random"]))
@settings(max_examples=60, deadline=None)
def test_a_run_that_moves_is_in_order_and_any_exchange_in_it_is_found(
    seed: int, steps: int, kind: str
) -> None:
    way = walk(kind, steps, seed)
    assert exchanges(distances(way)) == []
    assert two_ways(distances(way)) is None
    random = np.random.default_rng(seed)
    first, second = sorted(random.choice(steps, 2, replace=False))
    order = np.arange(steps)
    order[[first, second]] = second, first
    made = [(one.first, one.second) for one in exchanges(distances(way[order]))]
    # Of five points the same way, walked backwards, may be one exchange away as well.
    assert made == [(first, second)] if steps > 5 else made


@given(seed=st.integers(0, 10_000), steps=st.integers(6, 30), legs_away=st.floats(3.0, 5.0), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_point_off_a_way_that_goes_on_without_it_is_found_alone(
    seed: int, steps: int, legs_away: float, data: st.DataObject
) -> None:
    way = walk("straight", steps, seed)
    place = data.draw(st.integers(1, steps - 2))
    sideways = np.random.default_rng(seed + 1).standard_normal(way.shape[1])
    leg = np.linalg.norm(way[place] - way[place - 1])
    assert off_places(distances(way)) == {}
    way[place] += legs_away * leg * sideways / np.linalg.norm(sideways)
    off = off_places(distances(way))
    assert list(off) == [place]
    # Both legs are the hypotenuse of the way on and the way aside; without the point it is two legs on.
    assert off[place] == pytest.approx(np.hypot(1, legs_away), rel=0.1)


@pytest.mark.parametrize(("kind", "dimensions"), [("still", 30), ("random", 30), ("random", 100)])
def test_chance_is_not_told_even_in_few_dimensions(kind: str, dimensions: int) -> None:
    told = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).standard_normal((20, dimensions))
        apart = distances(np.cumsum(noise, axis=0) if kind == "random" else noise)
        told += bool(exchanges(apart)) + bool(off_places(apart)) + (two_ways(apart) is not None)
    assert told == 0


@given(seed=st.integers(0, 10_000), steps=st.integers(3, 40))
@settings(max_examples=40, deadline=None)
def test_weights_that_only_jitter_are_not_called_out_of_order(seed: int, steps: int) -> None:
    apart = distances(walk("still", steps, seed))
    assert exchanges(apart) == []
    assert two_ways(apart) is None
    assert max(detours(apart)) < 2.5


@given(seed=st.integers(0, 10_000), steps=st.integers(6, 30), scale=st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_units_and_origin_of_the_weights_do_not_matter(seed: int, steps: int, scale: float) -> None:
    way = walk("random", steps, seed)
    order = np.arange(steps)
    order[[1, 4]] = 4, 1
    made = [(one.first, one.second) for one in exchanges(distances(way[order]))]
    moved = [(one.first, one.second) for one in exchanges(distances(scale * (way[order] + 3)))]
    assert made == moved == [(1, 4)]


@given(seed=st.integers(0, 10_000), data=st.data())
@settings(max_examples=40, deadline=None)
def test_two_runs_in_one_order_are_parted(seed: int, data: st.DataObject) -> None:
    one, other = walk("straight", 8, seed), walk("random", 6, seed + 1) + 500
    labels = data.draw(st.permutations([0] * 8 + [1] * 6))
    places = [labels[: k + 1].count(label) - 1 for k, label in enumerate(labels)]
    mixed = np.stack([(one, other)[label][place] for label, place in zip(labels, places, strict=True)])
    found = two_ways(distances(mixed))
    changes = sum(a != b for a, b in itertools.pairwise(labels))
    if changes < 2:
        assert found is None  # one after the other: a jump, which is another finding
    else:
        assert found in (labels, [1 - label for label in labels])
