"""Planted runs: the truth is known because it was put there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from hnf_offline.findings import Alarm, Spike
from hnf_offline.run.records import Checkpoint, Log, Run
from hnf_offline.table import Row, table


@dataclass(frozen=True)
class Planted:
    log: pl.DataFrame
    profile: pl.DataFrame
    onsets: tuple[int, ...]
    spikes: tuple[Spike, ...]
    alarms: tuple[Alarm, ...]
    gap: int


def spike(number: int, onset: int, *, recovered: bool = True, steps: int = 12, **change: object) -> Spike:
    values: dict[str, object] = {
        "id": number,
        "onset": onset,
        "peak": onset + 1,
        "end": onset + steps if recovered else None,
        "loss_before": 1.0,
        "loss_peak": 4.0,
        "height": 3.0,
        "z": 20.0,
        "kind": "spike",
        "recovered": recovered,
        "recovery_steps": steps if recovered else None,
        "offset": 0.0,
        "at_resume": False,
    }
    return Spike(**{**values, **change})  # type: ignore[arg-type]


def alarm(known_at: int, rule: str = "edge", **change: object) -> Alarm:
    values: dict[str, object] = {
        "step": known_at,
        "known_at": known_at,
        "quantity": "hessian.stability_ratio",
        "layer": "",
        "value": 1.1,
        "threshold": 1.0,
        "rule": rule,
        "severity": "warning",
        "text": f"S = 1.1 at {known_at}",
    }
    return Alarm(**{**values, **change})  # type: ignore[arg-type]


def rows(quantity: str, steps: object, values: object, layer: str = "", depth: int = -1) -> list[Row]:
    kind = "model" if layer == "" else "other"
    pairs = zip(np.asarray(steps).tolist(), np.asarray(values).tolist(), strict=True)
    return [Row(int(s), layer, kind, depth, quantity, float(v)) for s, v in pairs]


def crossings(steps: np.ndarray, values: np.ndarray, spikes: tuple[Spike, ...] = ()) -> tuple[Alarm, ...]:
    """S crosses 1, armed below .8: the state machine in four lines, for the tests of this room only."""
    found, armed = [], True
    for step, value in zip(steps.tolist(), values.tolist(), strict=True):
        if armed and value > 1:
            found.append(alarm(step, value=value, text=f"S = {value:.2f}: past the edge"))
        armed = value <= 1 and (armed or value < 0.8)
    return tuple(found)


def relaxation(
    seed: int = 0, length: int = 1200, gap: int = 8, lead: int = 20, noise: float = 0.02
) -> Planted:
    """S climbs from .4, crosses 1 about `lead` steps before each spike, and falls back after it."""
    random = np.random.default_rng(seed)
    onsets, at = [], 90
    while at < length - 30:
        onsets.append(at)
        at += int(random.integers(85, 150))
    steps = np.arange(gap, length, gap)
    ratio = np.full(steps.size, 0.4)
    for k, step in enumerate(steps):
        before = max((o for o in onsets if o <= step), default=0)
        after = min((o for o in onsets if o > step), default=length + 200)
        crossing = max(after - lead, before + 30)
        ratio[k] = 0.4 * np.exp(np.log(2.5) * (step - before) / (crossing - before))
    ratio *= np.exp(noise * random.normal(size=ratio.size))
    logged = np.arange(1, length + 1)
    loss = 2.0 + 0.02 * random.normal(size=length)
    norm = np.exp(0.2 * random.normal(size=length))
    for onset in onsets:
        tail = np.exp(-np.arange(12) / 3.0)
        loss[onset - 1 : onset + 11] += 3.0 * tail[: loss[onset - 1 : onset + 11].size]
        norm[onset - 1 : onset + 11] += 20.0 * tail[: norm[onset - 1 : onset + 11].size]
    log = pl.DataFrame({
        "step": logged,
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": np.full(length, 1e-2),
    })
    profile = table([
        *rows("hessian.stability_ratio", steps, ratio),
        *rows("optimizer.learning_rate", steps, np.full(steps.size, 1e-2)),
    ])
    spikes = tuple(spike(k, onset) for k, onset in enumerate(onsets, 1))
    return Planted(log, profile, tuple(onsets), spikes, crossings(steps, ratio), gap)


def unrelated(seed: int = 0, length: int = 1200) -> Planted:
    """The signal of one run beside the spikes of another: nothing to find."""
    ours, other = relaxation(seed, length), relaxation(seed + 1000, length)
    steps = ours.profile.filter(pl.col("quantity") == "hessian.stability_ratio")
    shift = int(np.random.default_rng(seed + 7).integers(0, steps.height))
    values = np.roll(steps["value"].to_numpy(), shift)
    at = steps["step"].to_numpy()
    profile = table([
        *rows("hessian.stability_ratio", at, values),
        *rows("optimizer.learning_rate", at, np.full(at.size, 1e-2)),
    ])
    return Planted(other.log, profile, other.onsets, other.spikes, crossings(at, values), ours.gap)


def run_of(log: pl.DataFrame | None, profile: pl.DataFrame, name: str = "planted") -> Run:
    path = Path("runs") / name
    steps = sorted(profile["step"].unique().to_list()) if profile.width else []
    return Run(
        path=path,
        name=name,
        checkpoints=tuple(Checkpoint(step, path / f"checkpoint-{step}", "hf", ()) for step in steps),
        log=None if log is None else Log(log, (path / "trainer_state.json",)),
        batches=None,
        model=None,
    )
