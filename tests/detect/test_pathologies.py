from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hnf_offline.detect.pathologies import pathologies
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.synthetic import hover_run, loss_with_spikes, null_run, relaxation_run
from hnf_offline.table import Row, table

EMPTY_LOG = pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64})


def profile(values, quantity, layer=""):
    return table(Row(10 * (i + 1), layer, "other", 0, quantity, float(v)) for i, v in enumerate(values))


def kinds(measured=None, log=EMPTY_LOG):
    found = pathologies(table() if measured is None else measured, log, find_spikes(log))
    return [(p.kind, p.layer, p.step) for p in found]


@pytest.mark.parametrize("make", [relaxation_run, null_run, hover_run])
def test_runs_that_train_have_none(make):
    run = make()
    assert pathologies(run.profile, run.log, find_spikes(run.log)) == ()


def test_divergence_and_nan_are_told_with_numbers():
    log, _ = loss_with_spikes(200, [], 0)
    high = log.with_columns(pl.when(pl.col("step") > 150).then(9.0).otherwise(pl.col("loss")).alias("loss"))
    (found,) = pathologies(table(), high, find_spikes(high))
    assert (found.kind, found.step) == ("divergence", 151)
    assert "9" in found.evidence
    broken = log.with_columns(
        pl.when(pl.col("step") > 150).then(np.nan).otherwise(pl.col("loss")).alias("loss")
    )
    assert kinds(log=broken) == [("nonfinite-loss", "", 151)]


def test_weights_that_are_not_finite():
    assert kinds(profile([0, 0, 0.5, 1], "weight.nonfinite", "head")) == [("nonfinite-weights", "head", 30)]


def test_entropy_collapse_is_a_fall_to_zero_not_a_sharp_head():
    fallen = profile([2.0, 1.5, 0.5, 0.03, 0.02], "attention.entropy", "attn.softmax")
    assert kinds(fallen) == [("attention-entropy-collapse", "attn.softmax", 40)]
    assert kinds(profile([0.04, 0.03, 0.04, 0.03], "attention.entropy", "attn.softmax")) == []


@pytest.mark.parametrize(
    ("quantity", "values", "kind"),
    [
        ("attention.entropy", [2.0, 1.5, 0.5, 0.03, 0.02], "attention-entropy-collapse"),
        ("attention.logit_max", [10, 100, 900, 1500], "attention-logit-growth"),
        ("attention.saturation", [0.1, 0.2, 0.95, 0.96], "attention-saturation"),
    ],
)
def test_the_head_is_named_where_the_table_says_it(quantity, values, kind):
    heads = profile([0, 1, 2, 3, 4][: len(values)], f"{quantity}_head", "attn.softmax")
    (named,) = pathologies(pl.concat([profile(values, quantity, "attn.softmax"), heads]), EMPTY_LOG, ())
    assert named.kind == kind
    assert f"(head {named.step // 10 - 1})" in named.evidence
    (silent,) = pathologies(profile(values, quantity, "attn.softmax"), EMPTY_LOG, ())
    assert "head)" not in silent.evidence and "(head" not in silent.evidence


def test_logits_past_a_thousand():
    grown = profile([10, 100, 900, 1500], "attention.logit_max", "attn.softmax")
    assert kinds(grown) == [("attention-logit-growth", "attn.softmax", 40)]


def test_lag_counts_only_when_it_lasts():
    young = [20, 5, 3, 3, 3, 3, 3, 3, 3]  # steps 10 to 90: v_hat is made of few gradients
    assert kinds(profile([*young, 3, 3, 1, 3, 3, 1], "adam.lag_rms")) == []
    assert kinds(profile([*young, 1, 3, 3, 3, 1], "adam.lag_rms")) == [("adam-lag", "", 110)]


@pytest.mark.parametrize(
    "decades, kind", [(0.8, "gradient-vanishing"), (-0.8, "gradient-exploding"), (0.2, None)]
)
def test_gradients_over_depth(decades, kind):
    rows = [
        Row(
            step,
            f"model.layers.{block}.mlp.{name}",
            "mlp_up",
            block,
            "gradient.norm",
            10.0 ** (decades * block),
        )
        for step in (10, 20, 30)
        for block in range(6)
        for name in ("up", "down")
    ]
    assert kinds(table(rows)) == ([] if kind is None else [(kind, "model.layers", 10)])


def test_a_loss_stuck_where_it_began_is_a_plateau_and_a_converged_one_is_not():
    random = np.random.default_rng(0)
    steps = np.arange(1, 601)
    stuck = 3.4 * np.exp(0.005 * random.standard_normal(600))
    log = pl.DataFrame({"step": steps, "loss": stuck, "learning_rate": np.full(600, 1e-3)})
    ((kind, _, step),) = kinds(log=log)
    assert kind == "plateau"
    assert step < 100
    assert kinds(log=log.with_columns(pl.lit(0.0).alias("learning_rate"))) == []
    converged = 0.5 + 3 * np.exp(-steps / 30) + 0.001 * random.standard_normal(600)
    assert kinds(log=log.with_columns(pl.Series("loss", converged))) == []


@pytest.mark.parametrize(
    ("sick", "told"),
    [((3,), []), ((3, 4), []), ((3, 4, 6, 7), []), ((5, 6, 7), [60]), (tuple(range(8)), [10])],
)
def test_gradients_over_depth_count_at_three_checkpoints_in_a_row(sick, told):
    rows = [
        Row(
            10 * (at + 1),
            f"h.{block}.mlp",
            "mlp_up",
            block,
            "gradient.norm",
            10.0 ** (-block if at in sick else 0),
        )
        for at in range(8)
        for block in range(6)
    ]
    found = pathologies(table(rows), EMPTY_LOG, ())
    assert [(one.kind, one.layer, one.step) for one in found] == [
        ("gradient-exploding", "h", at) for at in told
    ]
    assert all("1 in block 0 and 1e-05 in block 5" in one.evidence for one in found)


def test_one_low_stretch_does_not_make_those_after_it_stand_still():
    steps = np.arange(1, 601)
    loss = 3.4 * (1 - 0.05 * steps / 600)
    loss[180:200] *= 0.95
    assert kinds(log=pl.DataFrame({"step": steps, "loss": loss})) == []
