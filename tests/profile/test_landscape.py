"""The landscape of a recorded run: against its own gradients and weights, from the cache, and where it is broken."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch.nn import functional

from hnf_offline.errors import UsageError
from hnf_offline.linalg.sketch import BLOCKS, LENGTH, sketch
from hnf_offline.options import PrecisionName, TierName, profile_settings
from hnf_offline.pipeline import measure
from hnf_offline.profile import ProfileSettings, plan
from hnf_offline.profile import landscape as measuring
from hnf_offline.profile.landscape import direction_course, jackknife, measure_landscape
from hnf_offline.profile.session import open_session
from hnf_offline.quantities.gradient_course import effective_dimension
from hnf_offline.run import open_run
from hnf_offline.run.formats import load_weights
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.table import Row

ALL = ProfileSettings(dtype="float64", device="cpu", landscape=True)
STEPS = [4, 8, 12, 16, 20, 24]


def course(table: pl.DataFrame, quantity: str) -> dict[int, dict]:
    return {row["step"]: row for row in table.filter(quantity=quantity).sort("step").to_dicts()}


def loss_of(module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(module(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def weights_file(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}" / "model.safetensors"


def test_it_is_that_of_the_run_s_own_weights_and_gradients(tiny: Path, tmp_path: Path) -> None:
    run = open_run(tiny)
    found = measure_landscape(run, ALL, tmp_path)
    assert found.skipped == () and found.rows["layer"].unique().to_list() == [""]
    session = open_session(run, ALL)
    assert session is not None
    module, rows = session.module, session.batch.tokens
    parameters = list(module.parameters())
    gradients: list[torch.Tensor] = []
    barriers: list[float] = []
    sharpness: list[float] = []
    before: list[torch.Tensor] | None = None
    for checkpoint in run.checkpoints:
        load_weights_into(module, load_weights(checkpoint))
        here = [one.detach().clone() for one in parameters]
        loss = loss_of(module, rows)
        gradient = torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)])
        gradients.append(gradient / gradient.norm())

        def at(weights: list[torch.Tensor]) -> float:
            with torch.no_grad():
                for one, value in zip(parameters, weights, strict=True):
                    one.copy_(value)
                return float(loss_of(module, rows))

        unit = gradients[-1].split([one.numel() for one in here])
        uphill = at([one + 0.05 * part.view_as(one) for one, part in zip(here, unit, strict=True)])
        sharpness.append(uphill - loss.item())
        if before is not None:
            losses = [
                at([torch.lerp(old, new, place / 8) for old, new in zip(before, here, strict=True)])
                for place in range(9)
            ]
            chord = [losses[0] + place / 8 * (losses[8] - losses[0]) for place in range(9)]
            barriers.append(max(one - other for one, other in zip(losses, chord, strict=True)))
        before = here
    told = course(found.rows, "landscape.local_sharpness")
    assert list(told) == STEPS
    assert [row["value"] for row in told.values()] == pytest.approx(sharpness, rel=1e-9)
    told = course(found.rows, "landscape.linear_barrier")
    assert list(told) == STEPS[1:]
    assert [row["value"] for row in told.values()] == pytest.approx(barriers, abs=1e-12)
    assert told[8]["batch"].startswith("from step 4: ") and all(row["certified"] for row in told.values())
    cosines = torch.stack(gradients) @ torch.stack(gradients).T
    (step, row), *others = course(found.rows, "gradient.effective_dimension").items()
    assert others == [] and step == 24
    assert row["value"] == pytest.approx(36 / float(cosines.square().sum()))
    assert row["low"] is None and row["batch"].startswith("6 checkpoints, steps 4 to 24")
    spectrum = torch.linalg.eigvalsh(cosines)
    (share,) = course(found.rows, "gradient.first_component_share").values()
    assert share["value"] == pytest.approx(float(spectrum[-1] / 6))
    noise = course(found.rows, "landscape.pac_bayes")
    assert list(noise) == STEPS and all(row["low"] <= row["value"] <= row["high"] for row in noise.values())


def test_a_rerun_measures_nothing_and_an_interrupted_one_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    whole = measure_landscape(open_run(tiny), ALL, tmp_path / "whole")

    def stop(progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_landscape(open_run(tiny), ALL, tmp_path / "out", on_progress=stop)
    measured: list[int] = []
    real = measuring._measure

    def watched(session, seed, checkpoint, *others):
        measured.append(checkpoint.step)
        return real(session, seed, checkpoint, *others)

    monkeypatch.setattr(measuring, "_measure", watched)
    assert_frame_equal(measure_landscape(open_run(tiny), ALL, tmp_path / "out").rows, whole.rows)
    assert measured == STEPS[3:]
    told: list[int] = []
    again = measure_landscape(
        open_run(tiny), replace(ALL, tier="full", layers="*mlp*"), tmp_path / "out",
        on_progress=lambda one: told.append(one.cached),
    )  # fmt: skip
    assert_frame_equal(again.rows, whole.rows)
    assert measured == STEPS[3:] and told[-1] == 6
    next((tmp_path / "out" / "profile").glob("gradient-*16.parquet")).unlink()
    assert_frame_equal(measure_landscape(open_run(tiny), ALL, tmp_path / "out").rows, whole.rows)
    assert measured == [*STEPS[3:], 16]


def test_a_changed_checkpoint_changes_its_own_and_the_next(
    tiny: Path, tmp_path: Path, rewrite, monkeypatch
) -> None:
    before = measure_landscape(open_run(tiny), ALL, tmp_path).rows
    rewrite(weights_file(tiny, 12), lambda tensors: {name: 3 * one for name, one in tensors.items()})
    measured: list[int] = []
    real = measuring._measure

    def watched(session, seed, checkpoint, *others):
        measured.append(checkpoint.step)
        return real(session, seed, checkpoint, *others)

    monkeypatch.setattr(measuring, "_measure", watched)
    after = measure_landscape(open_run(tiny), ALL, tmp_path).rows
    assert measured == [12, 16], "the barrier of 16 is from 12"
    old, new = (course(one, "landscape.pac_bayes") for one in (before, after))
    assert [step for step in STEPS if old[step] != new[step]] == [12]


def permuted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same function at other weights: the entries of the residual stream in another order."""
    order = torch.arange(8).roll(3)
    joined = next(one for name, one in tensors.items() if "c_attn.weight" in name)
    goes_in = joined.shape.index(8)  # the other one is 24 wide
    moved = dict(tensors)
    for name, one in tensors.items():
        if "wte" in name or "wpe" in name:
            moved[name] = one[:, order].contiguous()
        elif name.endswith("c_proj.bias"):
            moved[name] = one[order].contiguous()
        elif one.ndim == 2:
            dimension = 1 - goes_in if "c_proj" in name else goes_in
            moved[name] = one.index_select(dimension, order).contiguous()
    return moved


def test_planted_basins_have_a_barrier_and_a_healthy_run_has_none(
    tiny: Path, tmp_path: Path, rewrite
) -> None:
    healthy = measure(open_run(tiny), replace(ALL, tier="forward"), tmp_path / "a").table
    barriers = course(healthy, "landscape.linear_barrier")
    assert max(row["value"] for _, row in barriers.items()) < 1e-3
    rewrite(weights_file(tiny, 24), permuted)
    planted = measure(open_run(tiny), replace(ALL, tier="forward"), tmp_path / "b").table
    told = course(planted, "landscape.linear_barrier")
    assert told[24]["value"] > 0.02 and told[20] == barriers[20]
    losses = [
        course(one.filter(pl.col("batch").str.contains("rows of")), "replay.loss")[24]["value"]
        for one in (healthy, planted)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9), "both ends are the same function"


def test_weights_that_are_not_finite_end_it_there_alone(tiny: Path, tmp_path: Path, rewrite) -> None:
    rewrite(weights_file(tiny, 12), lambda tensors: {name: one * math.nan for name, one in tensors.items()})
    found = measure_landscape(open_run(tiny), ALL, tmp_path).rows
    kept = [step for step in STEPS if step != 12]
    assert list(course(found, "landscape.local_sharpness")) == kept
    assert list(course(found, "landscape.linear_barrier")) == [8, 20, 24]
    assert not course(found, "gradient.effective_dimension"), "five of six gradients make no full window"
    again = measure_landscape(open_run(tiny), ALL, tmp_path).rows
    assert_frame_equal(found, again)


def test_a_damaged_checkpoint_is_passed_over(tiny: Path, tmp_path: Path, rewrite) -> None:
    rewrite(weights_file(tiny, 20), lambda tensors: dict(list(tensors.items())[:1]))
    found = measure_landscape(open_run(tiny), ALL, tmp_path)
    assert list(course(found.rows, "landscape.pac_bayes")) == [4, 8, 12, 16, 24]
    assert list(course(found.rows, "landscape.linear_barrier")) == [8, 12, 16]
    ((path, reason, _),) = found.skipped
    assert path.name == "step-000020" and reason.startswith("no landscape: ")


def test_it_joins_the_profile_and_its_file_in_tier_full_too(tiny: Path, tmp_path: Path) -> None:
    told: list[str] = []
    settings = ProfileSettings(tier="forward", device="cpu", landscape=True)
    asked = measure(open_run(tiny), settings, tmp_path, on_progress=lambda one: told.append(one.work))
    names = {"landscape.pac_bayes", "landscape.linear_barrier", "gradient.effective_dimension"}
    assert names <= set(asked.table["quantity"]) and "landscape" in told
    assert_frame_equal(pl.read_parquet(tmp_path / "profile.parquet"), asked.table)
    plain = measure(open_run(tiny), replace(settings, landscape=False), tmp_path)
    assert not names & set(plain.table["quantity"])
    full = measure(open_run(tiny), ProfileSettings(tier="full", device="cpu", last_step=8), tmp_path / "full")
    assert {"landscape.pac_bayes", "landscape.linear_barrier"} <= set(full.table["quantity"])


def test_a_plan_counts_it(tiny: Path, tmp_path: Path) -> None:
    run, settings = open_run(tiny), ProfileSettings(tier="forward", device="cpu", landscape=True)
    planned = (
        plan(run, settings, tmp_path).forwards
        - plan(run, replace(settings, landscape=False), tmp_path).forwards
    )
    spent = measure_landscape(run, settings, tmp_path).forwards
    assert 0.7 <= planned / spent <= 1.3


def test_a_tier_that_replays_nothing_refuses() -> None:
    with pytest.raises(UsageError, match="--landscape is not measured by --tier weights"):
        profile_settings(
            TierName.weights, None, 1, None, "cpu", PrecisionName.float32, None, None, landscape=True
        )


def projected(vectors: torch.Tensor) -> dict[int, torch.Tensor]:
    return {10 * at: sketch([one], one.numel(), seed=0) for at, one in enumerate(vectors, start=1)}


def of(rows: list[Row], quantity: str) -> list[Row]:
    return [row for row in rows if row.quantity == quantity]


def test_directions_of_large_models_come_with_the_projection_s_error() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 4 * LENGTH
    axes = torch.randn(3, size, generator=generator, dtype=torch.float64)
    mix = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    vectors = mix @ axes + 0.3 * torch.randn(12, size, generator=generator, dtype=torch.float64)
    rows = direction_course(projected(vectors), 12, "rows")
    units = vectors / vectors.norm(dim=1, keepdim=True)
    found = of(rows, "gradient.effective_dimension")
    assert [row.step for row in found] == [80, 90, 100, 110, 120]
    for row in found:
        window = units[row.step // 10 - 8 : row.step // 10]
        exact = effective_dimension((window @ window.T).numpy())
        assert row.value == pytest.approx(exact, rel=0.05)
        assert row.low is not None and row.high is not None
        assert row.low - 0.02 <= exact <= row.high + 0.02
    three = of(rows, "gradient.three_component_share")
    assert all(row.value > 0.85 and row.high is not None and row.high <= 1 for row in three)


def test_no_window_looks_ahead_and_short_runs_make_one() -> None:
    vectors = torch.randn(10, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = projected(vectors)
    whole = direction_course(kept, 10, "rows")
    cut = direction_course({step: one for step, one in kept.items() if step <= 90}, 10, "rows")
    assert cut == [row for row in whole if row.step <= 90]
    (short,) = of(
        direction_course({s: kept[s] for s in (10, 20, 30, 40)}, 4, "rows"), "gradient.effective_dimension"
    )
    assert short.batch == "4 checkpoints, steps 10 to 40: rows"
    assert direction_course({s: kept[s] for s in (10, 20, 30)}, 3, "rows") == []


def test_a_jackknife_of_a_mean_is_its_standard_error() -> None:
    blocks = torch.randn(
        BLOCKS, 1, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    ).numpy()
    value, error = jackknife(lambda one: float(one[0, 0]), blocks)
    assert value == pytest.approx(blocks.mean())
    assert error == pytest.approx(blocks.std(ddof=1) / math.sqrt(BLOCKS))
    assert jackknife(lambda one: float(one[0, 0]), blocks[:1]) == (blocks[0, 0, 0], 0.0)
