"""Two runs through the same table: planted separations are found, identical runs are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hnf_offline.comparison import Comparison
from hnf_offline.diff import compare
from hnf_offline.diff.series import OF_THE_MEASUREMENT, profiled
from hnf_offline.findings import Findings
from hnf_offline.quantities import catalogue
from hnf_offline.run.records import Batches, Log, Run
from hnf_offline.table import Row, table

STEPS = np.arange(1, 201)


def decay(seed: int, noise: float = 0.02) -> np.ndarray:
    return (2 + 2 * np.exp(-STEPS / 60)) * np.exp(noise * np.random.default_rng(seed).standard_normal(200))


def log(loss: np.ndarray, steps: np.ndarray = STEPS, **more: np.ndarray) -> Log:
    return Log(rows=pl.DataFrame({"step": steps, "loss": loss, **more}), files=(Path("log.jsonl"),))


def run(name: str, training_log: Log | None, **more: Any) -> Run:
    return Run(
        path=Path("/nowhere") / name,
        name=name,
        checkpoints=(),
        log=training_log,
        batches=None,
        model=None,
        **more,
    )


def findings(name: str, optimizer: str = "AdamW", rule: str = "robust") -> Findings:
    return Findings(
        run={"name": name, "path": f"/nowhere/{name}", "optimizer": optimizer},
        verdict={},
        facts=(),
        made={"spike_rule": rule},
    )


def profile(
    values: Mapping[tuple[str, str], np.ndarray], steps: range = range(10, 201, 10), **more: Any
) -> pl.DataFrame:
    return table(
        Row(step, layer, "mlp_up" if layer else "model", 1 if layer else -1, quantity, float(value), **more)
        for (layer, quantity), series in values.items()
        for step, value in zip(steps, series, strict=True)
    )


def compared(
    log_a: Log | None = None,
    log_b: Log | None = None,
    profile_a: pl.DataFrame | None = None,
    profile_b: pl.DataFrame | None = None,
    configuration: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
    **more: Any,
) -> Comparison:
    return compare(
        findings("a"),
        findings("b"),
        run("a", log_a, configuration=configuration[0]),
        run("b", log_b, configuration=configuration[1]),
        table() if profile_a is None else profile_a,
        table() if profile_b is None else profile_b,
        **more,
    )


def separation(comparison: Comparison, quantity: str, layer: str = "") -> Any:
    return next(one for one in comparison.separations if (one.quantity, one.layer) == (quantity, layer))


def ripple(seed: int = 0, level: float = 1.0) -> np.ndarray:
    return level * np.exp(0.1 * np.random.default_rng(seed).standard_normal(20))


def test_a_run_is_the_same_as_itself() -> None:
    values = {("", "hessian.stability_ratio"): ripple(), ("layers.0", "gradient.norm"): ripple(1)}
    same = compared(
        log(decay(0)), log(decay(0)), profile(values), profile(values), ({"lr": 0.1}, {"lr": 0.1})
    )
    assert same.verdict["word"] == "Same"
    assert same.configuration == ()
    assert same.incomparable == ()
    assert all(one.step is None for one in same.separations)
    assert same.aligned["first_loss_difference"] is None
    assert "equal to the last digit" in same.verdict["sentence"]


def test_two_seeds_of_one_curve_do_not_part() -> None:
    result = compared(log(decay(0)), log(decay(1)))
    assert result.verdict["word"] == "Same"
    assert separation(result, "loss").step is None


@pytest.mark.parametrize("where", [30, 120, 180])
def test_a_planted_separation_is_found_where_it_is(where: int) -> None:
    loss = decay(0)
    other = np.where(where <= STEPS, 1.5 * loss, loss)
    result = compared(log(loss), log(other))
    assert separation(result, "loss").step == where
    assert result.aligned["first_loss_difference"] == where
    assert f"equal before step {where}) part at step {where}, for good" in result.verdict["sentence"]
    assert result.verdict["word"] == "Differ"


def test_one_outlier_is_no_separation() -> None:
    loss = decay(0)
    other = loss.copy()
    other[100] *= 5
    assert separation(compared(log(loss), log(other)), "loss").step is None


def test_runs_that_come_together_again_are_not_apart_for_good() -> None:
    loss = decay(0)
    other = np.where((STEPS >= 80) & (STEPS < 130), 2 * loss, loss)
    found = separation(compared(log(loss), log(other)), "loss")
    assert (found.step, found.until) == (80, 129)


def test_a_loss_that_is_not_finite_is_said_and_never_a_number() -> None:
    loss = decay(0)
    broken = np.where(STEPS >= 151, np.nan, loss)
    result = compared(log(loss), log(broken))
    assert separation(result, "loss").step == 151
    assert "B is not finite from step 151" in result.verdict["sentence"]
    assert "nan" not in str(result.verdict).lower().replace("finite", "")
    assert "not finite" in result.facts[2]["value"]
    result.to_json()


def test_what_both_lose_is_no_separation() -> None:
    broken = np.where(STEPS >= 151, np.inf, decay(0))
    assert separation(compared(log(broken), log(broken)), "loss").step is None


def test_the_second_half_of_the_losses_is_tested_with_the_rows_that_count() -> None:
    one, same, worse = log(decay(0)), log(decay(1)), log(decay(1) + 0.05)
    apart, alike = compared(one, worse).loss_test, compared(one, same).loss_test
    assert apart is not None and apart["p"] < 1e-3 and apart["low"] < -0.05 < apart["high"]
    assert alike is not None and alike["p"] > 0.01 and alike["low"] < 0 < alike["high"]
    assert compared(one, log(decay(0))).loss_test is None


def test_the_layer_that_parts_first_is_named() -> None:
    late, early = ripple(1), ripple(2)
    a = {("layers.0.mlp", "gradient.norm"): late, ("layers.1.mlp", "gradient.norm"): early}
    b = {
        ("layers.0.mlp", "gradient.norm"): np.where(np.arange(20) >= 12, 9 * late, late),
        ("layers.1.mlp", "gradient.norm"): np.where(np.arange(20) >= 7, 9 * early, early),
    }
    result = compared(profile_a=profile(a), profile_b=profile(b))
    assert separation(result, "gradient.norm", "layers.1.mlp").step == 80
    assert separation(result, "gradient.norm", "layers.0.mlp").step == 130
    assert (
        "First to part among the layers is layers.1.mlp (gradient.norm) at step 80"
        in result.verdict["sentence"]
    )


def test_signed_quantities_are_compared_by_their_difference() -> None:
    a = {("", "hessian.lambda_min"): np.linspace(-1, 1, 20)}
    b = {("", "hessian.lambda_min"): np.where(np.arange(20) >= 10, -3.0, np.linspace(-1, 1, 20))}
    found = separation(compared(profile_a=profile(a), profile_b=profile(b)), "hessian.lambda_min")
    assert (found.step, found.scale) == (110, "difference")


def test_overlapping_error_bars_are_not_apart() -> None:
    level = {("", "hessian.lambda_max"): np.full(20, 1.0)}
    double = {("", "hessian.lambda_max"): np.full(20, 2.0)}
    wide = compared(profile_a=profile(level, low=0.5, high=2.5), profile_b=profile(double, low=0.5, high=2.5))
    sharp = compared(
        profile_a=profile(level, low=0.9, high=1.1), profile_b=profile(double, low=1.9, high=2.1)
    )
    assert separation(wide, "hessian.lambda_max").step is None
    assert separation(sharp, "hessian.lambda_max").step == 10


def test_uncertified_values_are_marked_and_listed() -> None:
    a = {("", "hessian.lambda_max"): np.full(20, 1.0)}
    b = {("", "hessian.lambda_max"): np.full(20, 9.0)}
    result = compared(profile_a=profile(a), profile_b=profile(b, certified=False))
    assert not separation(result, "hessian.lambda_max").certified
    assert any("20 of 20 values of B are not certified" in sentence for sentence in result.incomparable)


def test_only_keys_that_say_how_are_compared() -> None:
    one = {
        "optimizer.learning_rate": 0.01, "output_dir": "/home/x/a", "started": "2026-01-01", "seed": 1,
        "data": "/data/one.bin", "depth": 4, "weight_decay": 0.1, "time_limit": 5,
    }  # fmt: skip
    two = one | {
        "optimizer.learning_rate": 0.0004, "output_dir": "/home/x/b", "started": "2026-02-02",
        "data": "/data/two.bin", "weight_decay": None, "time_limit": 6,
    }  # fmt: skip
    result = compared(log(decay(0)), log(decay(0)), configuration=(one, two))
    differing = {one.key: (one.a, one.b) for one in result.configuration}
    assert differing == {
        "optimizer.learning_rate": (0.01, 0.0004),
        "time_limit": (5, 6),
        "weight_decay": (0.1, None),
    }
    assert result.shared_configuration == {"seed": 1, "depth": 4}
    assert "optimizer.learning_rate (0.01 against 0.0004)" in result.verdict["sentence"]


def test_a_learning_rate_that_only_the_log_knows_is_a_difference() -> None:
    rate = np.full(200, 0.01)
    result = compared(log(decay(0), learning_rate=rate), log(decay(0), learning_rate=rate / 25))
    (difference,) = result.configuration
    assert "learning_rate" in difference.key
    assert (difference.a, difference.b) == (0.01, 0.0004)
    assert "S contains the learning rate" in result.verdict["caveat"]
    assert result.facts[0]["value"] == "none"  # a setting that differs is no symptom


def test_no_common_step_cannot_be_said() -> None:
    result = compared(log(decay(0)), log(decay(0), steps=STEPS + 1000))
    assert result.verdict["word"] == "Cannot say"
    assert any("no step in common" in sentence for sentence in result.incomparable)


def test_what_cannot_be_compared_is_listed(tmp_path: Path) -> None:
    batches = []
    for name, content in (("one.npz", b"one"), ("two.npz", b"two")):
        (tmp_path / name).write_bytes(content)
        batches.append(Batches(path=tmp_path / name, tokens="tokens", labels=None, rows=1, length=1))
    a = profile({("x", "gradient.norm"): ripple(), ("only_a", "gradient.norm"): ripple()})
    b = profile({("x", "gradient.norm"): ripple(), ("x", "adam.lag_rms"): ripple()}).filter(
        pl.col("step") > 20
    )
    run_a = Run(Path("a"), "a", (), log(decay(0)), batches[0], None)
    run_b = Run(Path("b"), "b", (), log(decay(0)[:150], steps=STEPS[:150]), batches[1], None)
    result = compare(findings("a", "AdamW, lr 0.1"), findings("b", "SGD, lr 0.2", "olmo"), run_a, run_b, a, b)
    told = "\n".join(result.incomparable)
    for part in (
        "50 logged steps only in A (151 to 200)",
        "2 profiled checkpoints only in A (10 to 20)",
        "1 layer (only_a) only in A",
        "1 quantity (adam.lag_rms) only in B",
        "one.npz and two.npz differ",
        "Other optimizers (AdamW and SGD)",
        "Spikes were found by other rules (robust and olmo)",
    ):
        assert part in told, part
    again = compare(
        findings("a", "AdamW, lr 0.1"),
        findings("b", "AdamW, lr 0.2"),
        run_a,
        run_b,
        a,
        b,
        replay=tmp_path / "one.npz",
    )
    assert not any("differ" in one or "ptimizer" in one for one in again.incomparable)


def test_weights_are_compared_layer_by_layer(tmp_path: Path) -> None:
    from hnf_offline.run import open_run

    runs = []
    for label, shift in (("a", 0.0), ("b", 3.0)):
        for step in (10, 20):
            folder = tmp_path / label / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            moved = shift if step == 20 else 0.0
            tensors = {
                "up.weight": torch.full((2, 8), 1.0),
                "down.weight": torch.full((4, 4), 2.0) + moved,
                "extra.weight" if label == "a" else "other.weight": torch.ones(2),
                "shaped.weight": torch.ones(3 if label == "a" else 4),
            }
            save_file(tensors, folder / "model.safetensors")
        runs.append(open_run(tmp_path / label))
    result = compare(findings("a"), findings("b"), *runs, table(), table())
    distance = {(one.step, one.layer): (one.distance, one.relative) for one in result.weight_distances}
    assert distance == {
        (10, "up"): (0.0, 0.0),
        (10, "down"): (0.0, 0.0),
        (20, "up"): (0.0, 0.0),
        (20, "down"): (12.0, 1.5),
    }
    told = "\n".join(result.incomparable)
    assert "extra.weight) only in A" in told
    assert "other.weight) only in B" in told
    assert "1 tensor (shaped.weight) with other shapes" in told


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 20))
def test_units_do_not_matter_and_order_only_swaps_names(scale: float, seed: int) -> None:
    a, b = decay(seed), np.where(STEPS >= 100, 1.4 * decay(seed + 1), decay(seed + 1))
    plain = separation(compared(log(a), log(b)), "loss")
    scaled = separation(compared(log(scale * a), log(scale * b)), "loss")
    swapped = separation(compared(log(b), log(a)), "loss")
    assert plain.step == scaled.step == swapped.step
    assert math.isclose(plain.threshold, scaled.threshold, rel_tol=1e-6)
    assert math.isclose(plain.threshold, swapped.threshold)


def test_how_well_something_was_measured_is_no_difference_of_the_runs() -> None:
    def profile(error: float, curvature: float) -> pl.DataFrame:
        return table(
            Row(step, "h.0", "linear", 0, quantity, value, batch=batch)
            for step in range(10, 120, 10)
            for quantity, value, batch in (
                ("hessian.product_error", error, "suffix differences"),
                ("hessian.lambda_max", curvature, "replay"),
            )
        )

    told = {quantity for quantity, _, _ in profiled(profile(0.002, 3.0), profile(0.0007, 5.0))}
    assert told == {"hessian.lambda_max"}
    named = {
        entry for entry in catalogue() if entry.endswith(("error", "left_out")) and "output" not in entry
    }
    assert named == set(OF_THE_MEASUREMENT), "a new one belongs there too"


def test_which_head_it_was_is_no_number_that_can_part() -> None:
    heads = np.zeros(20)
    other = profile({("0.softmax", "attention.entropy_head"): heads, ("", "gradient.norm"): heads + 1})
    one = profile({("0.softmax", "attention.entropy_head"): heads + 3, ("", "gradient.norm"): heads + 1})
    assert [quantity for quantity, _, _ in profiled(one, other)] == ["gradient.norm"]
    indices = {name for name, entry in catalogue().items() if entry.unit == "head index"}
    assert indices == {name for name in catalogue() if name.endswith("_head")}
