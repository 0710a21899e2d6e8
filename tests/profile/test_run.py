"""A profile of a run on disk: what is damaged is passed over and told, what is missing costs only itself."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from hnf_offline.errors import InputError, UsageError
from hnf_offline.profile import ProfileSettings, plan, profile_run
from hnf_offline.profile import measure as measuring
from hnf_offline.profile import run as profiling
from hnf_offline.profile.devices import choose_device
from hnf_offline.profile.measure import measure
from hnf_offline.profile.session import check_settings
from hnf_offline.profile.settings import Progress
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities import catalogue
from hnf_offline.run import open_run
from hnf_offline.table import KINDS, Row, schema

FORWARD, GRADIENT = ProfileSettings(tier="forward"), ProfileSettings(tier="gradient")
Rewrite = Callable[..., None]


def checkpoint_file(run: Path, step: int, name: str = "model") -> Path:
    return run / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors"


def at(table: pl.DataFrame, step: int, quantity: str) -> pl.DataFrame:
    return table.filter(pl.col("step") == step, pl.col("quantity") == quantity)


def checked_losses(table: pl.DataFrame) -> dict[tuple[int, str], float]:
    rows = table.filter(pl.col("quantity") == "replay.loss", pl.col("batch").str.starts_with("step "))
    return {(row["step"], row["batch"]): row["value"] for row in rows.to_dicts()}


def logged_losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def test_the_table_keeps_its_contract(tiny: Path, tmp_path: Path) -> None:
    profile = profile_run(open_run(tiny), ProfileSettings(), tmp_path / "out")
    table = profile.table
    assert dict(table.schema) == schema()
    assert_frame_equal(pl.read_parquet(tmp_path / "out" / "profile.parquet"), table)
    assert profile.skipped == () and profile.device == "cpu"
    assert table["step"].unique().sort().to_list() == [4, 8, 12, 16, 20, 24]
    assert set(table["quantity"].unique()) <= set(catalogue())
    assert set(table["kind"].unique()) <= set(KINDS)
    assert table.select(["step", "depth"]).equals(table.select(["step", "depth"]).sort(["step", "depth"]))
    assert not table.select(["step", "layer", "quantity", "batch"]).is_duplicated().any()
    whole = table.filter(pl.col("layer") == "")
    assert whole["kind"].unique().to_list() == ["model"] and whole["depth"].unique().to_list() == [-1]
    for quantity in ("hessian.stability_ratio", "hessian.lambda_max", "hessian.lambda_min"):
        layers = at(table, 12, quantity)
        assert {"", "transformer.wte", "transformer.h.0.attn.c_attn.query"} <= set(layers["layer"])
        assert (layers["low"] <= layers["value"]).all() and (layers["value"] <= layers["high"]).all()
    mass = at(table, 12, "hessian.unstable_mass")
    assert mass["value"].sum() == pytest.approx(1.0, abs=1e-5)
    rate = at(table, 12, "optimizer.learning_rate")["value"].item()
    assert rate == pytest.approx(0.02)
    ratio = at(table, 12, "hessian.stability_ratio").filter(pl.col("layer") == "")["value"].item()
    assert at(table, 12, "optimizer.largest_stable_lr")["value"].item() == pytest.approx(rate / ratio)


def test_the_run_itself_is_never_touched(tiny: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tiny.rglob("*")}
    profile_run(open_run(tiny), GRADIENT, tmp_path / "out")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tiny.rglob("*")} == before


def test_replaying_the_next_batch_gives_the_logged_loss(tiny: Path, tmp_path: Path) -> None:
    table = profile_run(open_run(tiny), FORWARD, tmp_path / "out").table
    logged = logged_losses(tiny)
    replayed = checked_losses(table)
    assert {step for step, _ in replayed} == {4, 8, 12, 16, 20}, "no logged step follows the last checkpoint"
    for step in (4, 8, 12, 16, 20):
        assert replayed[step, f"step {step + 1}"] == pytest.approx(logged[step + 1], rel=1e-5)
        assert (step, f"step {step}") not in replayed, "where it agrees nothing else is tried"


@pytest.mark.parametrize(("off", "matching"), [(-1, 2), (1, 0)])
def test_a_step_count_that_is_off_by_one_is_found(
    tiny: Path, tmp_path: Path, off: int, matching: int
) -> None:
    (tiny / "checkpoints" / "step-000012").rename(tiny / "checkpoints" / f"step-{12 + off:06d}")
    table = profile_run(open_run(tiny), FORWARD, tmp_path / "out").table
    logged, replayed, step = logged_losses(tiny), checked_losses(table), 12 + off
    tried = [step, step + 1, step + 2]
    agreeing = [s for s in tried if replayed[step, f"step {s}"] == pytest.approx(logged[s], rel=1e-5)]
    assert agreeing == [step + matching] == [13]


def test_a_loss_of_another_batch_is_not_taken_for_agreement(
    tiny: Path, tmp_path: Path, rewrite: Rewrite
) -> None:
    rewrite(tiny / "batches.safetensors", lambda saved: {**saved, "input_ids": saved["input_ids"].flip(0)})
    table = profile_run(open_run(tiny), FORWARD, tmp_path / "out").table
    assert {batch for step, batch in checked_losses(table) if step == 8} == {"step 8", "step 9", "step 10"}


def test_a_dead_run_replays_as_dead(tiny: Path, tmp_path: Path, rewrite: Rewrite) -> None:
    rewrite(
        checkpoint_file(tiny, 20),
        lambda saved: {name: torch.full_like(value, math.nan) for name, value in saved.items()},
    )
    lines = (tiny / "log.jsonl").read_text().splitlines()
    lines[20:] = [json.dumps({"step": step, "loss": math.nan}) for step in range(21, 25)]
    (tiny / "log.jsonl").write_text("\n".join(lines) + "\n")
    table = profile_run(open_run(tiny), FORWARD, tmp_path / "out").table
    assert [batch for step, batch in checked_losses(table) if step == 20] == ["step 21"]


def test_a_truncated_checkpoint_among_good_ones_is_passed_over(tiny: Path, tmp_path: Path) -> None:
    file = checkpoint_file(tiny, 12)
    file.write_bytes(file.read_bytes()[:-100])
    run = open_run(tiny)
    profile = profile_run(run, GRADIENT, tmp_path / "out")
    assert profile.table["step"].unique().sort().to_list() == [4, 8, 16, 20, 24]
    assert any(
        "truncated" in skipped.reason and "step-000012" in str(skipped.path) for skipped in run.skipped
    )


def test_a_checkpoint_that_breaks_while_others_are_measured_is_told(tiny: Path, tmp_path: Path) -> None:
    run = open_run(tiny)
    file = checkpoint_file(tiny, 12)
    file.write_bytes(file.read_bytes()[:-100])
    told: list[Progress] = []
    profile = profile_run(run, GRADIENT, tmp_path / "out", on_progress=told.append)
    assert profile.table["step"].unique().sort().to_list() == [4, 8, 16, 20, 24]
    assert profile.computed == 5
    ((path, reason, remedy),) = profile.skipped
    assert "step-000012" in str(path) and reason and remedy
    assert [one.done for one in told] == [1, 2, 3, 4, 5, 6]
    # It is not taken for measured: mended, it is measured.
    healthy = checkpoint_file(tiny, 16).read_bytes()
    file.write_bytes(healthy)
    assert profile_run(open_run(tiny), GRADIENT, tmp_path / "out").computed == 1


def test_a_checkpoint_of_another_model_is_passed_over_by_name(
    tiny: Path, tmp_path: Path, rewrite: Rewrite
) -> None:
    rewrite(
        checkpoint_file(tiny, 8),
        lambda saved: {name: value for name, value in saved.items() if "c_fc.bias" not in name},
    )
    profile = profile_run(open_run(tiny), GRADIENT, tmp_path / "out")
    assert profile.computed == 5
    ((path, reason, _),) = profile.skipped
    assert path.name == "step-000008" and "transformer.h.0.mlp.c_fc.bias" in reason


def test_where_no_checkpoint_can_be_measured_the_reason_is_the_error(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config["model"]["n_layer"] = 5
    (tiny / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"none of 6 checkpoints .* lacks 32 parameters") as error:
        profile_run(open_run(tiny), GRADIENT, tmp_path / "out")
    assert "config.json" in str(error.value.remedy)


def test_a_dead_checkpoint_is_a_finding(tiny: Path, tmp_path: Path, rewrite: Rewrite) -> None:
    def kill(saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: torch.full_like(value, math.nan) for name, value in saved.items()}

    def infect(saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        saved["transformer.h.0.mlp.c_fc.weight"][0, 0] = math.inf
        return saved

    rewrite(checkpoint_file(tiny, 24), kill)
    rewrite(checkpoint_file(tiny, 20), infect)
    told: list[Progress] = []
    profile = profile_run(open_run(tiny), ProfileSettings(), tmp_path / "out", on_progress=told.append)
    assert profile.skipped == () and profile.computed == 6
    dead = at(profile.table, 24, "weight.nonfinite")
    assert dead["value"].unique().to_list() == [1.0] and len(dead) > 5
    infected = at(profile.table, 20, "weight.nonfinite").filter(pl.col("value") > 0)
    assert infected["layer"].to_list() == ["", "transformer.h.0.mlp.c_fc"]
    assert infected["value"][1] == pytest.approx(1 / 72)
    assert at(profile.table, 16, "weight.nonfinite")["value"].to_list() == [0.0]
    assert at(profile.table, 24, "hessian.stability_ratio").is_empty()
    assert not at(profile.table, 16, "hessian.stability_ratio").is_empty()
    assert [one.step for one in told if "not finite" in one.event] == [20, 24]


@pytest.mark.parametrize("missing", ["model", "batches"])
def test_without_model_or_batches_the_weights_are_still_looked_at(
    tiny: Path, tmp_path: Path, rewrite: Rewrite, missing: str
) -> None:
    if missing == "batches":
        (tiny / "batches.safetensors").unlink()
    else:
        config = json.loads((tiny / "config.json").read_text())
        (tiny / "config.json").write_text(json.dumps({**config, "model": {}}))

    def infect(saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        saved["transformer.wte.weight"][0, 0] = math.nan
        return saved

    rewrite(checkpoint_file(tiny, 8), infect)
    run = open_run(tiny)
    assert any(gone.what == f"no {missing}" for gone in run.missing)
    profile = profile_run(run, ProfileSettings(), tmp_path / "out")
    assert profile.table["quantity"].unique().to_list() == ["weight.nonfinite"]
    assert len(at(profile.table, 4, "weight.nonfinite")) == 1
    assert at(profile.table, 8, "weight.nonfinite")["layer"].to_list() == ["", "transformer.wte.weight"]
    assert plan(run, ProfileSettings(), tmp_path / "out").tier == "weights"
    assert profile_run(run, ProfileSettings(), tmp_path / "out").cached == 6


@pytest.mark.parametrize("fault", ["another name", "another shape"])
def test_optimizer_state_that_fits_no_parameter_leaves_s_out_and_says_so(
    tiny: Path, tmp_path: Path, rewrite: Rewrite, fault: str
) -> None:
    def spoil(saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if fault == "another name":
            return {name.replace("c_fc", "fully"): value for name, value in saved.items()}
        return {name: value.flatten()[:-1].clone() for name, value in saved.items()}

    rewrite(checkpoint_file(tiny, 16, "optimizer"), spoil)
    profile = profile_run(open_run(tiny), ProfileSettings(), tmp_path / "out")
    assert profile.computed == 6
    assert at(profile.table, 16, "hessian.stability_ratio").is_empty()
    assert not at(profile.table, 16, "hessian.lambda_max").is_empty()
    assert not at(profile.table, 20, "hessian.stability_ratio").is_empty()
    ((path, reason, cost),) = profile.skipped
    assert "step-000016" in str(path) and "optimizer state" in reason and "S is left out" in cost


def test_without_optimizer_state_there_is_raw_curvature(tiny: Path, tmp_path: Path) -> None:
    checkpoint_file(tiny, 16, "optimizer").unlink()
    run = open_run(tiny)
    profile = profile_run(run, replace(ProfileSettings(), first_step=16, last_step=20), tmp_path / "out")
    assert at(profile.table, 16, "hessian.stability_ratio").is_empty()
    assert not at(profile.table, 16, "hessian.lambda_max").is_empty()
    assert not at(profile.table, 20, "hessian.stability_ratio").is_empty()
    assert profile.skipped == ()
    assert any("no optimizer state in 1 of 6" in gone.what for gone in run.missing)


def test_only_the_layers_asked_for_have_their_own_curvature(tiny: Path, tmp_path: Path) -> None:
    settings = ProfileSettings(layers="*.mlp.*", last_step=4)
    profile = profile_run(open_run(tiny), settings, tmp_path / "out")
    assert set(at(profile.table, 4, "hessian.lambda_max")["layer"]) == {
        "",
        "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_proj",
    }
    assert at(profile.table, 4, "hessian.unstable_mass")["value"].sum() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(UsageError, match="matches none of 8 layers") as error:
        profile_run(open_run(tiny), replace(settings, layers="*.nowhere"), tmp_path / "out")
    assert "transformer.wte" in str(error.value.remedy)


def test_a_plan_says_sane_numbers(tiny: Path, tmp_path: Path) -> None:
    run = open_run(tiny)
    plans = {
        tier: plan(run, ProfileSettings(tier=tier), tmp_path / "out") for tier in ("forward", "curvature")
    }
    full = plans["curvature"]
    assert (full.checkpoints, full.cached, full.tier, full.device) == (6, 0, "curvature", "cpu")
    assert (full.layers, full.rows, full.tokens) == (8, 96, 480)
    assert full.parameters == 9 * 8 + 5 * 8 + (24 * 8 + 24) + (8 * 8 + 8) + 2 * (8 * 8 + 8)
    assert full.peak_bytes > 4 * full.parameters
    assert 1 < plans["forward"].forwards < 10 < full.forwards
    assert full.missing == ()
    assert not (tmp_path / "out").exists()
    few = plan(run, ProfileSettings(every=2, rows=5), tmp_path / "out")
    assert (few.checkpoints, few.rows, few.tokens) == (3, 5, 25)


# memory


def test_few_rows_at_a_time_give_the_same_values(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ProfileSettings(dtype="float64", accuracy="converged", rows=6, last_step=4)
    together = profile_run(open_run(tiny), settings, tmp_path / "together").table
    original = profiling.open_session

    def cramped(*arguments: Any) -> Any:
        session = original(*arguments)
        assert session is not None
        return replace(session, memory=replace(session.memory, rows=1, keep_graphs=False))

    monkeypatch.setattr(profiling, "open_session", cramped)
    one_by_one = profile_run(open_run(tiny), settings, tmp_path / "one_by_one").table
    key = ["step", "layer", "quantity", "batch"]
    assert one_by_one.select(key).equals(together.select(key))
    for row, other in zip(together.to_dicts(), one_by_one.to_dicts(), strict=True):
        assert other["value"] == pytest.approx(row["value"], rel=1e-5, abs=1e-7), row


def test_when_memory_runs_out_fewer_rows_are_tried(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, bool]] = []

    def hungry(subject: Subject, settings: ProfileSettings) -> list[Row]:
        rows = max(len(batch.tokens) for batch in subject.batches)
        tried.append((rows, subject.keep_graphs))
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(subject, settings)

    settings = replace(GRADIENT, rows=16, last_step=4)
    calm = profile_run(open_run(tiny), settings, tmp_path / "calm").table
    monkeypatch.setattr(measuring, "measure", hungry)
    table = profile_run(open_run(tiny), settings, tmp_path / "out").table
    assert tried == [(16, True), (8, False), (4, False), (2, False)]
    norms = at(table, 4, "gradient.norm")["value"].to_list()
    assert norms == pytest.approx(at(calm, 4, "gradient.norm")["value"].to_list(), rel=1e-4)


def test_where_not_even_a_row_fits_the_remedy_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(subject: Subject, settings: ProfileSettings) -> list[Row]:
        if subject.step == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(subject, settings)

    monkeypatch.setattr(measuring, "measure", too_much)
    profile = profile_run(open_run(tiny), FORWARD, tmp_path / "out")
    ((path, reason, remedy),) = profile.skipped
    assert path.name == "step-000008" and "one row does not fit" in reason and "--device cpu" in remedy
    assert profile.computed == 5


# what a user gets wrong


def test_batches_of_another_run_are_refused(tiny: Path, tmp_path: Path, rewrite: Rewrite) -> None:
    rewrite(tiny / "batches.safetensors", lambda saved: {**saved, "input_ids": saved["input_ids"] + 5})
    with pytest.raises(InputError, match=r"the model knows 0\.\.8"):
        profile_run(open_run(tiny), FORWARD, tmp_path / "out")
    rewrite(
        tiny / "batches.safetensors",
        lambda saved: {"input_ids": torch.zeros(4, 99, dtype=torch.int32)},
    )
    with pytest.raises(InputError, match="99 tokens"):
        profile_run(open_run(tiny), FORWARD, tmp_path / "out")


def test_a_model_that_does_not_take_the_rows_is_an_input_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_model.py").write_text("import torch\n\ndef build():\n    return torch.nn.Linear(3, 3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"batches\.safetensors: the model does not run on a row"):
        profile_run(open_run(tiny), FORWARD, tmp_path / "out", model_factory="own_model:build")


def test_rows_from_another_file_are_replayed_but_not_held_against_the_log(tiny: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(tiny / "batches.safetensors", tmp_path / "held_out.safetensors"))
    settings = replace(FORWARD, replay=other, last_step=4)
    table = profile_run(open_run(tiny), settings, tmp_path / "out").table
    assert checked_losses(table) == {}
    assert at(table, 4, "replay.loss")["batch"].to_list() == ["all 96 rows of held_out.safetensors"]


@pytest.mark.parametrize(
    "settings",
    [{"tier": "deep"}, {"dtype": "float16"}, {"accuracy": "exact"}, {"every": 0}, {"rows": 0}],
    ids=str,
)
def test_settings_that_name_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check_settings(ProfileSettings(**settings))


def test_a_device_that_is_not_here_is_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("tpu", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(UsageError, match=r"not available here|is no device"):
            choose_device(name)


def test_no_checkpoint_in_the_steps_asked_for_gives_an_empty_table(tiny: Path, tmp_path: Path) -> None:
    profile = profile_run(open_run(tiny), replace(FORWARD, first_step=1000), tmp_path / "out")
    assert profile.table.is_empty() and dict(profile.table.schema) == schema()
