"""Rules on what real files hold: gaps, NaN, few checkpoints, other units, constants, resumed runs, very long logs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.pathologies import pathologies
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.table import Row, table
from tests.detect.planted_logs import PLACE, ROWS, falling, found, found_in_file, log_of, noise
from tests.detect.test_every_kind import changed, evaluated, speed

LOG = pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64, "loss_scale": pl.Float64})
#: Quantity, layer and the eight values of a series that is sick from its fifth checkpoint (step 140) on.
SICK: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "dead-units": ("activation.dead_share", "mlp", (0.1, 0.1, 0.2, 0.3, 0.8, 0.8, 0.9, 0.9)),
    "saturated-units": ("activation.saturated_share", "tanh", (0.1, 0.1, 0.2, 0.3, 0.8, 0.8, 0.9, 0.9)),
    "attention-saturation": ("attention.saturation", "softmax", (0.1, 0.1, 0.2, 0.3, 0.95, 0.95, 0.95, 0.95)),
    "attention-entropy-collapse": ("attention.entropy", "softmax", (2, 2, 1.8, 1.5, 0.02, 0.02, 0.01, 0.01)),
    "attention-logit-growth": ("attention.logit_max", "softmax", (9, 20, 50, 200, 2e3, 3e3, 3e3, 3e3)),
    "rank-collapse": ("weight.effective_rank", "mlp", (40, 39, 38, 30, 5, 4, 4, 4)),
    "token-collapse": ("residual.token_spread", "block", (0.6, 0.7, 0.5, 0.3, 0.03, 0.02, 0.01, 0.01)),
    "logit-drift": ("logits.log_z", "", (3, 4, 5, 9, 60, 70, 70, 80)),
    "epsilon-bound-updates": ("adam.epsilon_share", "mlp", (0.1, 0.1, 0.2, 0.3, 0.8, 0.8, 0.9, 0.9)),
    "lost-updates": ("precision.lost_updates", "mlp", (0.1, 0.1, 0.2, 0.3, 0.8, 0.8, 0.9, 0.9)),
    "silent-precision-loss": ("precision.loss_change_bf16", "", (0.0, 0.01, 0.0, 0.01, 0.3, 0.4, 0.4, 0.5)),
    "adam-lag": ("adam.lag_rms", "", (1, 1, 1, 1, 3, 3, 3, 3)),
    "float16-overflow": ("activation.overflow_fp16", "mlp", (0, 0, 0, 0, 0.1, 0.1, 0.2, 0.2)),
}


def told(name: str, values: tuple[float, ...], steps: list[int] | None = None) -> list[int]:
    """Steps at which a kind is told of a series."""
    quantity, layer, _ = SICK[name]
    at = steps or [100 + 10 * place for place in range(len(values))]
    rows = [Row(step, layer, "other", 0, quantity, float(one)) for step, one in zip(at, values, strict=True)]
    return [one.step for one in pathologies(table(rows), LOG, ()) if one.kind == name]


@pytest.mark.parametrize("name", SICK)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_hide_nothing_and_make_nothing(name: str, broken: float) -> None:
    values = SICK[name][2]
    assert told(name, values) == [140]
    if name != "float16-overflow":  # an infinite share cannot be
        for hole in (0, 2, 7):
            assert told(name, changed(values, hole, hole + 1, broken)) == [140], f"at {hole}"
        assert told(name, (broken,) * 8) == []
        assert told(name, (*values[:4], *[broken] * 4)) == []


@pytest.mark.parametrize("name", SICK)
def test_constant_series_and_single_checkpoints_are_judged_by_absolute_rules_alone(name: str) -> None:
    healthy, sick = SICK[name][2][0], SICK[name][2][-1]
    assert told(name, (healthy,)) == told(name, (healthy,) * 8) == []
    absolute = {
        "attention-logit-growth", "epsilon-bound-updates", "lost-updates", "silent-precision-loss", "float16-overflow",
    }  # fmt: skip
    assert told(name, (sick,)) == ([100] if name in absolute else [])
    assert told(name, (sick,) * 2) == ([100] if name in absolute else [])
    relative = set(SICK) - absolute - {"adam-lag"}
    assert told(name, (healthy, sick)) == ([] if name == "adam-lag" else [110])
    if name in relative:
        assert told(name, (sick,) * 8) == [], "so from the start"


@pytest.mark.parametrize("name", SICK)
def test_checkpoints_that_are_missing_at_the_onset_only_make_it_later(name: str) -> None:
    values = SICK[name][2]
    kept = [0, 1, 2, 5, 6, 7]
    assert told(name, tuple(values[one] for one in kept), [100 + 10 * one for one in kept]) == [150]


def test_weights_that_are_not_finite_say_nothing_of_half_precision_or_of_their_replay() -> None:
    sick = [Row(20, "mlp", "mlp", 0, name, 1.0) for name in ("weight.nonfinite", "precision.nonfinite_bf16")]
    sick += [
        Row(20, "", "model", -1, "replay.loss", math.nan),
        Row(20, "mlp", "mlp", 0, "residual.rms", math.nan),
    ]
    assert [one.kind for one in pathologies(table(sick), LOG, ())] == ["nonfinite-weights"]


def test_a_model_whose_cast_replay_alone_breaks_has_lost_precision() -> None:
    rows = [Row(step, "", "model", -1, "replay.loss", 2.0) for step in (10, 20, 30)]
    rows += [
        Row(step, "", "model", -1, "precision.loss_change_bf16", value)
        for step, value in ((10, 0.0), (20, math.nan), (30, math.nan))
    ]
    (one,) = pathologies(table(rows), LOG, ())
    assert (one.kind, one.step) == ("silent-precision-loss", 20) and "not finite" in one.evidence


PLANTED: dict[str, Callable[[], pl.DataFrame]] = {
    "loss-spike": lambda: log_of(changed(falling(0), 600, 606, 4.0)),
    "divergence": lambda: log_of(changed(falling(0), 700, ROWS, 9.0 * noise(0, 0.05)[700:])),
    "slow-divergence": lambda: log_of(falling(0) + np.maximum(0, PLACE - 500) * 0.004),
    "plateau": lambda: log_of(3.4 * noise(0, 0.01)),
    "overfitting": lambda: evaluated(0, 0.4, 0.005),
    "throughput-drop": lambda: log_of(falling(0), throughput=speed(0, 0.5, 0.1)),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("unit", [1 / math.log(2), 1e-3, 100.0])
def test_the_unit_of_a_loss_changes_nothing(name: str, unit: float) -> None:
    columns = [one for one in PLANTED[name]().columns if one not in {"step"}]
    scaled = PLANTED[name]().with_columns(pl.col(columns) * unit)
    kinds = [(one.kind, one.step) for one in found(PLANTED[name]())]
    assert name in {kind for kind, _ in kinds}
    assert [(one.kind, one.step) for one in found(scaled)] == kinds


def test_a_small_loss_that_stays_up_has_diverged_and_one_that_comes_back_has_not() -> None:
    error = 0.05 * np.exp(-PLACE / 100) + 0.002
    up = changed(error, 700, ROWS, 0.04) * noise(0, 0.02)
    assert "divergence" in {one.kind for one in found(log_of(up))}
    back = changed(error, 700, 720, 0.04) * noise(0, 0.02)
    assert "divergence" not in {one.kind for one in found(log_of(back))}


@pytest.mark.parametrize("name", PLANTED)
def test_holes_and_broken_rows_in_a_log_hide_nothing(name: str) -> None:
    log = PLANTED[name]()
    draw = np.random.default_rng(0)
    kept = log.filter(pl.Series(draw.random(ROWS) > 0.1))
    assert name in {one.kind for one in found(kept)}
    broken = log.with_columns(
        pl.when(pl.Series(draw.random(ROWS) > 0.99)).then(math.nan).otherwise(pl.col("loss")).alias("loss")
    )
    assert (
        name in {one.kind for one in found(broken)} or name == "divergence"
    )  # NaN while it is up: one "nonfinite"
    assert {"nonfinite-loss"} <= {one.kind for one in found(broken)}


@pytest.mark.parametrize("value", [0.0, 2.0, -1.0])
def test_constant_logs_are_no_spikes_and_break_nothing(value: float) -> None:
    constant = np.full(ROWS, value)
    columns = dict.fromkeys(("grad_norm", "loss_scale", "throughput", "gpu_mem", "eval_loss"), constant)
    kinds = {one.kind for one in found(log_of(constant, **columns))}
    assert kinds <= {"plateau", "loss-scale-collapse"}


def test_a_resumed_run_is_judged_by_the_rows_that_count(tmp_path: Path) -> None:
    before = changed(falling(0), 560, 600, 9.0)  # it went up, was stopped, and resumed from 520 without that
    steps = np.concatenate([PLACE[:600], PLACE[520:]])
    log = found_in_file(tmp_path / "log.jsonl", steps, np.concatenate([before[:600], falling(0)[520:]]))
    assert {one.kind for one in log} <= {"duplicated-log"}, "what was resumed away is no divergence"


def long_log(rows: int) -> pl.DataFrame:
    """A long log with everything in it that a detector reads, NaN and spikes too."""
    draw = np.random.default_rng(0)
    place = np.arange(rows)
    loss = (2 + 2 * np.exp(-5 * place / rows)) * np.exp(0.05 * draw.standard_normal(rows))
    loss[rows // 10 :: rows // 40] *= 3
    loss[rows // 20 :: rows // 30] = math.nan
    return pl.DataFrame({
        "step": place, "loss": loss, "grad_norm": np.exp(0.5 * draw.standard_normal(rows)),
        "loss_scale": 2.0 ** draw.integers(4, 16, rows), "throughput": np.exp(0.3 * draw.standard_normal(rows)),
        "gpu_mem": 10 + draw.random(rows), "eval_loss": loss + 0.1,
    })  # fmt: skip


def test_very_long_logs_take_time_in_proportion() -> None:
    taken = []
    for rows in (50_000, 50_000, 200_000):  # the first warms up
        log = long_log(rows)
        began = time.process_time()
        pathologies(pl.DataFrame(), log, find_spikes(log))
        taken.append(time.process_time() - began)
    assert taken[2] < 10 * max(taken[1], 0.1), (
        "four times the rows; sixteen times the time would be quadratic"
    )
    assert taken[2] < 30


def test_a_stuck_loss_of_200_000_rows_takes_no_longer() -> None:
    stuck = 3.4 * np.exp(0.01 * np.random.default_rng(0).standard_normal(200_000))
    began = time.process_time()
    log = pl.DataFrame({"step": np.arange(200_000), "loss": stuck})
    assert [one.kind for one in pathologies(pl.DataFrame(), log, find_spikes(log))] == ["plateau"]
    slow = stuck * (1 - 0.02 * np.arange(200_000) / 200_000)  # every block is a candidate, none is stuck
    log = pl.DataFrame({"step": np.arange(200_000), "loss": slow})
    pathologies(pl.DataFrame(), log, find_spikes(log))
    assert time.process_time() - began < 20


def test_many_checkpoints_of_many_layers_take_seconds() -> None:
    draw = np.random.default_rng(0)
    steps, layers = 400, 200
    columns = [
        pl.DataFrame({
            "step": np.arange(steps) * 10, "layer": f"blocks.{layer}.mlp", "depth": layer,
            "kind": "embedding" if layer < 3 else "mlp_up", "quantity": "gradient.norm",
            "value": np.exp(draw.standard_normal(steps)),
        })
        for layer in range(layers)
    ]  # fmt: skip
    empty = table()
    profile = pl.concat([empty, *(one.cast({"depth": pl.Int32}) for one in columns)], how="diagonal")
    began = time.process_time()
    pathologies(profile, LOG, ())
    assert time.process_time() - began < 15
    assert all(a <= b for a, b in pairwise(profile["depth"].to_list()[::steps]))
