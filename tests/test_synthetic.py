from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hnf_offline import synthetic
from hnf_offline.table import COLUMNS, series

RUNS = ("relaxation_run", "null_run", "lr_jump_run", "bad_batch_run", "hover_run")


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_reproducible_tables_and_logs(name):
    make = getattr(synthetic, name)
    run, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert run.profile.equals(again.profile)
    assert run.log.equals(again.log)
    assert not run.log.equals(other.log)
    assert run.profile.columns == list(COLUMNS)
    assert {"step", "loss", "grad_norm", "learning_rate"} <= set(run.log.columns)
    assert run.log["step"].is_sorted()
    mass = (
        run.profile
        .filter(pl.col("quantity") == "hessian.unstable_mass")
        .group_by("step")
        .agg(pl.col("value").sum())
    )
    assert mass["value"].to_numpy() == pytest.approx(1.0)


def test_spikes_are_where_the_truth_says():
    log, truth = synthetic.loss_with_spikes(400, [100, 250], seed=0, noise=0.0, height=3.0)
    flat, _ = synthetic.loss_with_spikes(400, [], seed=0, noise=0.0)
    lift = (log["loss"] / flat["loss"]).to_numpy()
    for onset, peak in zip(truth.onsets, truth.peaks, strict=True):
        assert lift[onset - 2] == pytest.approx(1.0, abs=0.01)
        assert lift[onset - 1] == pytest.approx(3.0)
        assert np.argmax(lift[onset - 50 : onset + 50]) + onset - 49 == peak


def test_s_is_one_at_the_planted_crossings_and_leads_by_the_planted_steps():
    run = synthetic.relaxation_run(gap=1, noise=0.0, lead=20)
    ratio = dict(series(run.profile, "hessian.stability_ratio").select("step", "value").iter_rows())
    for crossing, onset in zip(run.truth.crossings, run.truth.onsets, strict=True):
        assert onset - crossing == 20
        assert ratio[crossing] == pytest.approx(1.0)
        assert ratio[onset] == pytest.approx(0.45)
    rate = dict(series(run.profile, "optimizer.learning_rate").select("step", "value").iter_rows())
    headroom = dict(series(run.profile, "optimizer.headroom").select("step", "value").iter_rows())
    assert headroom[150] == pytest.approx(1 / ratio[150])
    assert rate[150] == 1e-2


def test_null_spikes_know_nothing_of_s():
    before = []
    for seed in range(40):
        run = synthetic.null_run(seed=seed)
        ratio = series(run.profile, "hessian.stability_ratio")
        level = float(np.log(ratio["value"].to_numpy()).mean())
        for onset in run.truth.onsets:
            seen = ratio.filter(pl.col("step") < onset)["value"][-1]
            before.append(np.log(seen) - level)
    assert abs(np.mean(before)) < 3 * np.std(before) / np.sqrt(len(before)) + 0.02


def test_saved_rates_are_those_of_the_next_update():
    run = synthetic.lr_jump_run(jump=150, length=3)
    logged = dict(run.log.select("step", "learning_rate").iter_rows())
    for step, saved in series(run.profile, "optimizer.learning_rate").select("step", "value").iter_rows():
        if step + 1 in logged:
            assert saved == pytest.approx(logged[step + 1])
    assert run.truth.cause == "learning-rate"
    assert synthetic.lr_jump_run(ratio=0.05).truth.onsets == ()


def test_sparse_logs_keep_only_their_rows():
    log, _ = synthetic.loss_with_spikes(400, [100], seed=0, every=50)
    assert log["step"].to_list() == list(range(50, 401, 50))
