"""Generators of series, logs and profiles with their truth; tests, docs and benchmarks share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hnf_offline.detect.autocorrelation import ar1_paths
from hnf_offline.table import Row, table

Floats = NDArray[np.float64]

#: (layer, kind, share of the whole model's ratio, share of the unstable direction) of the profiles' model.
LAYERS = (
    ("layers.0.attention.query", "query", 0.3, 0.1),
    ("layers.0.mlp.down", "mlp_down", 0.5, 0.2),
    ("layers.1.mlp.down", "mlp_down", 0.9, 0.6),
    ("head", "head", 0.2, 0.1),
)


@dataclass(frozen=True, slots=True)
class Truth:
    """What was planted.

    Attributes:
        onsets: first step of each spike.
        peaks: step of the highest loss of each spike.
        crossings: steps at which S reached 1, one a climb; empty where S has nothing to do with the spikes.
        layer: the layer that holds most of the unstable direction, "" where none does.
        cause: "edge", "learning-rate", "bad-batch", "none" or "chance".
    """

    onsets: tuple[int, ...]
    peaks: tuple[int, ...]
    crossings: tuple[int, ...]
    layer: str
    cause: str


@dataclass(frozen=True, slots=True)
class SyntheticRun:
    """A profile and a log as a run would leave them, with the truth."""

    profile: pl.DataFrame
    log: pl.DataFrame
    truth: Truth


def ar1(n: int, phi: float, seed: int) -> Floats:
    """Draw a stationary AR(1) series with unit variance.

    Returns:
        n values.
    """
    return np.asarray(ar1_paths(phi, n, 1, seed)[0])


def loss_with_spikes(
    n: int,
    onsets: Sequence[int],
    seed: int,
    *,
    height: float = 2.0,
    decay: float = 5.0,
    noise: float = 0.01,
    start: float = 4.0,
    floor: float = 1.5,
    every: int = 1,
    learning_rate: float = 1e-3,
) -> tuple[pl.DataFrame, Truth]:
    """Draw a falling loss with spikes: floor + (start - floor) exp(-4 s / n) times noise times spikes.

    The noise is lognormal. A spike multiplies the loss by `height` in its first step, by a little more
    in the second, and decays with time constant `decay` steps.

    Args:
        n: steps 1..n.
        onsets: first steps of the spikes.
        seed: seed of the noise.
        height: factor at the onset.
        decay: steps in which the logarithm of the factor falls by e.
        noise: standard deviation of log loss.
        start: loss at step 0.
        floor: loss that is approached.
        every: log every so many steps.
        learning_rate: constant learning rate of the log.

    Returns:
        The log (step, loss, grad_norm, learning_rate) and the truth.
    """
    steps = np.arange(1, n + 1)
    smooth = floor + (start - floor) * np.exp(-4 * steps / n)
    lift = np.zeros(n)
    for onset in onsets:
        since = steps - onset
        lift = np.maximum(lift, np.where(since >= 0, np.log(height) * _shape(since, decay), 0.0))
    random = np.random.default_rng(seed)
    loss = smooth * np.exp(lift + noise * random.standard_normal(n))
    norm = 0.5 * np.exp(1.5 * lift + 0.1 * random.standard_normal(n))
    log = pl.DataFrame({
        "step": steps,
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": np.full(n, learning_rate),
    })
    peaks = tuple(min(int(onset) + 1, n) for onset in onsets)
    return log.filter(pl.col("step") % every == 0), Truth(
        tuple(int(o) for o in onsets), peaks, (), "", "chance"
    )


def relaxation_run(
    *,
    spikes: int = 5,
    cycle: int = 120,
    lead: int = 16,
    gap: int = 8,
    low: float = 0.45,
    first: int = 100,
    noise: float = 0.02,
    height: float = 2.5,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> SyntheticRun:
    """Draw a run in which S climbs exponentially from `low` to 1, and the loss spikes `lead` steps later.

    S goes on growing at the same rate until the spike, then falls back to `low`. After the last spike it
    stays there.

    Args:
        spikes: number of climbs that end in a spike.
        cycle: steps from spike to spike.
        lead: steps from the crossing of 1 to the onset.
        gap: steps between checkpoints.
        low: S after a spike.
        first: step at which the first climb begins.
        noise: standard deviation of log S.
        height: factor of the loss at an onset.
        learning_rate: of the saved optimizer state and the log.
        seed: seed of all noise.

    Returns:
        Profile, log and truth (cause "edge").
    """
    rate = np.log(1 / low) / (cycle - lead)
    onsets = [first + cycle * (number + 1) for number in range(spikes)]
    crossings = [onset - lead for onset in onsets]
    last = onsets[-1] + cycle
    steps = np.arange(gap, last + 1, gap)
    since = np.full(steps.size, -1)
    for begin in [first, *onsets[:-1]]:
        since = np.where((steps >= begin) & (steps < begin + cycle), steps - begin, since)
    ratio = low * np.exp(rate * np.maximum(since, 0))
    log, truth = loss_with_spikes(last, onsets, seed, height=height, learning_rate=learning_rate)
    profile = _profile(steps, ratio, np.full(steps.size, learning_rate), noise, seed + 1)
    return SyntheticRun(
        profile, log, Truth(truth.onsets, truth.peaks, tuple(crossings), _leading_layer(), "edge")
    )


def null_run(
    *, spikes: int = 5, steps: int = 800, gap: int = 8, level: float = 0.5, phi: float = 0.8, seed: int = 0
) -> SyntheticRun:
    """Draw a run whose spikes have nothing to do with S: S is AR(1) in logarithm, the onsets are uniform.

    Returns:
        Profile, log and truth (cause "chance").
    """
    random = np.random.default_rng(seed)
    places = np.arange(100, steps - 20, 40)
    onsets = np.sort(random.choice(places, min(spikes, places.size), replace=False)) + random.integers(0, 10)
    log, truth = loss_with_spikes(steps, onsets.tolist(), seed)
    at = np.arange(gap, steps + 1, gap)
    ratio = level * np.exp(0.4 * ar1(at.size, phi, seed + 1))
    return SyntheticRun(_profile(at, ratio, np.full(at.size, 1e-3), 0.0, seed), log, truth)


def lr_jump_run(
    *,
    ratio: float = 0.59,
    factor: float = 10.0,
    jump: int = 150,
    length: int = 3,
    gap: int = 10,
    steps: int = 300,
    seed: int = 0,
) -> SyntheticRun:
    """Draw a run whose learning rate is raised for a few steps; the loss spikes one step later if S passes 1.

    Saved optimizer states hold the rate of the next update, as trainers do.

    Args:
        ratio: S before the raise.
        factor: of the learning rate.
        jump: first step with the raised rate.
        length: steps with the raised rate.
        gap: steps between checkpoints.
        steps: steps of the run.
        seed: seed of all noise.

    Returns:
        Profile, log and truth (cause "learning-rate").
    """
    spiked = ratio * factor > 1
    log, truth = loss_with_spikes(steps, [jump + 1] if spiked else [], seed, decay=15.0, learning_rate=5e-3)
    raised = pl.col("step").is_between(jump, jump + length - 1)
    log = log.with_columns(pl.col("learning_rate") * pl.when(raised).then(factor).otherwise(1.0))
    at = np.arange(gap, steps + 1, gap)
    following = (at + 1 >= jump) & (at + 1 < jump + length)
    after = (at >= jump + length) if spiked else np.zeros(at.size, dtype=np.bool_)
    values = np.where(after, 0.3, 1.0) * ratio * np.where(following, factor, 1.0)
    profile = _profile(at, values, np.where(following, factor, 1.0) * 5e-3, 0.02, seed)
    cause = "learning-rate" if spiked else "none"
    return SyntheticRun(
        profile, log, Truth(truth.onsets, truth.peaks, (), _leading_layer() if spiked else "", cause)
    )


def bad_batch_run(
    *, at: Sequence[int] = (220,), gap: int = 10, steps: int = 300, seed: int = 0
) -> SyntheticRun:
    """Draw a run with one-step spikes from bad batches: S stays at 0.3 and knows nothing of them.

    Returns:
        Profile, log and truth (cause "bad-batch").
    """
    log, truth = loss_with_spikes(steps, at, seed, height=4.0, decay=0.2)
    where = np.arange(gap, steps + 1, gap)
    profile = _profile(where, np.full(where.size, 0.3), np.full(where.size, 1e-3), 0.1, seed)
    return SyntheticRun(profile, log, Truth(truth.onsets, truth.onsets, (), "", "bad-batch"))


def hover_run(*, steps: int = 1200, reach: int = 368, gap: int = 8, seed: int = 0) -> SyntheticRun:
    """Draw a quiet run at the edge of stability: S climbs to 1 by `reach` and stays there; no spike.

    Returns:
        Profile, log and truth (cause "none").
    """
    log, truth = loss_with_spikes(steps, [], seed, learning_rate=4e-4)
    at = np.arange(gap, steps + 1, gap)
    climb = 0.03 * np.exp(np.log(1.05 / 0.03) * np.minimum(at / reach, 1.0))
    wobble = np.where(at > reach, np.exp(0.08 * ar1(at.size, 0.7, seed + 1)), 1.0)
    profile = _profile(at, climb * wobble, np.full(at.size, 4e-4), 0.0, seed)
    return SyntheticRun(profile, log, Truth(truth.onsets, truth.peaks, (int(reach),), "", "none"))


def _shape(since: NDArray[np.int64], decay: float) -> Floats:
    """Give the logarithm of a spike, relative to its first step: 1, 1.1, then decaying.

    Returns:
        One value a step.
    """
    later = 1.1 * np.exp(-np.maximum(since - 1, 0) / decay)
    if decay < 1:
        later = np.exp(-np.maximum(since, 0) / decay)
    return np.where(since == 0, 1.0, later)


def _leading_layer() -> str:
    """Name the layer that holds most of the unstable direction.

    Returns:
        Its path.
    """
    return max(LAYERS, key=lambda layer: layer[3])[0]


def _profile(steps: NDArray[np.int64], ratio: Floats, rates: Floats, noise: float, seed: int) -> pl.DataFrame:
    """Make the long table of a whole-model S, its layers, and the learning rate.

    Returns:
        The table.
    """
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    measured = ratio * np.exp(noise * random.standard_normal(steps.size))
    for step, value, rate in zip(steps.tolist(), measured.tolist(), rates.tolist(), strict=True):
        for quantity, of_model in (
            ("hessian.stability_ratio", value),
            ("optimizer.learning_rate", rate),
            ("optimizer.headroom", 1 / value),
            ("optimizer.largest_stable_lr", rate / value),
            ("gradient.norm", 0.5 * float(np.exp(0.1 * random.standard_normal()))),
        ):
            rows.append(Row(step, "", "model", -1, quantity, of_model))
        leading = min(value, 1.0)
        for depth, (layer, kind, share, mass) in enumerate(LAYERS):
            shifted = mass * (1 - 0.5 * leading) + (0.5 * leading if layer == _leading_layer() else 0.0)
            of_layer = value * share * float(np.exp(0.05 * random.standard_normal()))
            rows.append(Row(step, layer, kind, depth, "hessian.stability_ratio", of_layer))
            rows.append(Row(step, layer, kind, depth, "hessian.unstable_mass", shifted))
            rows.append(
                Row(
                    step,
                    layer,
                    kind,
                    depth,
                    "gradient.norm",
                    0.2 * float(np.exp(0.1 * random.standard_normal())),
                )
            )
    return table(rows)
