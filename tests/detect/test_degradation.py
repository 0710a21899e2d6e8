"""Each degradation planted in a long table, beside a table of the same kind that is healthy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import polars as pl
import pytest

from hnf_offline.detect.degradation import degradations
from hnf_offline.detect.pathologies import pathologies
from hnf_offline.synthetic import hover_run, null_run, relaxation_run
from hnf_offline.table import Row, table

LOG = pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64})
SCALED_LOG = LOG.with_columns(pl.lit(None, pl.Float64).alias("loss_scale"))


def series(
    quantity: str, values: Sequence[float], layer: str = "h.0.mlp", depth: int = 0, kind: str = "linear"
) -> list[Row]:
    return [
        Row(10 * (place + 1), layer, kind, depth, quantity, float(value))
        for place, value in enumerate(values)
    ]


def found(*rows: list[Row], log: pl.DataFrame = LOG) -> list[tuple[str, str, int]]:
    return [(one.kind, one.layer, one.step) for one in pathologies(table(chain.from_iterable(rows)), log, ())]


@pytest.mark.parametrize(
    ("quantity", "kind", "high"),
    [
        ("activation.dead_share", "dead-units", 0.6),
        ("activation.saturated_share", "saturated-units", 0.6),
        ("attention.saturation", "attention-saturation", 0.92),
    ],
)
def test_a_share_counts_when_it_has_risen_and_lasts(quantity: str, kind: str, high: float) -> None:
    assert found(series(quantity, [0.05, 0.2, high, high, 0.95])) == [(kind, "h.0.mlp", 30)]
    assert found(series(quantity, [0.05, 0.2, 0.3, 0.2, high])) == [(kind, "h.0.mlp", 50)], "the last one"
    assert found(series(quantity, [0.05, high, 0.1, 0.05, 0.1])) == [], "once, by accident of the rows"
    assert found(series(quantity, [high, high, high + 0.05, high])) == [], "so from the start"
    assert found(series(quantity, [math.nan] * 4)) == []


def test_a_rank_collapses_against_its_own_first_value() -> None:
    assert found(series("weight.effective_rank", [40, 30, 9, 5])) == [("rank-collapse", "h.0.mlp", 30)]
    assert found(series("weight.effective_rank", [40, 35, 30, 25])) == []
    assert found(series("weight.effective_rank", [2, 2, 2, 2])) == []


def test_tokens_collapse_at_the_first_block_where_they_do() -> None:
    name, kind = "residual.token_spread", "block"
    fine = series(name, [0.5, 0.4, 0.4, 0.4], "h.0", 0, kind)
    first = series(name, [0.6, 0.3, 0.04, 0.04], "h.1", 1, kind)
    later = series(name, [0.7, 0.1, 0.01, 0.01], "h.2", 2, kind)
    assert found(later, fine, first) == [("token-collapse", "h.1", 30)]
    sooner = series(name, [0.7, 0.01, 0.01, 0.01], "h.2", 2, kind)
    assert found(first, sooner) == [("token-collapse", "h.2", 20)]
    # Low, but not a quarter of what it was (a real run goes from 0.087 to 0.033 and back); or a quarter, but not low.
    assert found(series(name, [0.087, 0.033, 0.033, 0.033])) == []
    assert found(series(name, [0.9, 0.2, 0.1, 0.1])) == []


def test_logits_drift_in_either_direction() -> None:
    for sign in (1, -1):
        drifting = series("logits.log_z", [3, sign * 10, sign * 40, sign * 60], layer="")
        assert found(drifting) == [("logit-drift", "", 30)]
    assert found(series("logits.log_z", [-33, -35, -36, -31], layer="")) == [], (
        "an arbitrary level is no drift"
    )


def test_an_embedding_whose_gradient_jumps_alone() -> None:
    steady = [1.0, 1.1, 0.9, 1.0, 1.0, 1.1]
    jumping = [1.0, 1.1, 0.9, 1.0, 40.0, 1.0]
    embedding = series("gradient.norm", jumping, "wte", 0, "embedding")
    calm = series("gradient.norm", steady, "h.0.mlp", 1) + series("gradient.norm", steady, "head", 2)
    assert found(embedding, calm) == [("embedding-gradient-spike", "wte", 50)]
    all_jump = series("gradient.norm", jumping, "h.0.mlp", 1) + series("gradient.norm", jumping, "head", 2)
    assert found(embedding, all_jump) == [], "all layers jump: that is a spike of the gradient"
    assert (
        found(series("gradient.norm", jumping, "h.0.mlp", 1), series("gradient.norm", steady, "head", 2))
        == []
    )


def test_updates_that_epsilon_bounds() -> None:
    assert found(series("adam.epsilon_share", [0.1, 0.4, 0.6, 0.9])) == [
        ("epsilon-bound-updates", "h.0.mlp", 30)
    ]
    assert found(series("adam.epsilon_share", [0.1, 0.4, 0.45, 0.3])) == []


def test_weights_that_bfloat16_cannot_hold() -> None:
    costly = series("precision.loss_change_bf16", [0.001, 0.3, 0.4], layer="")
    assert found(costly) == [("silent-precision-loss", "", 20)]
    assert found(series("precision.loss_change_bf16", [0.001, 0.004, -0.3], layer="")) == []


def test_the_first_layer_that_leaves_the_range_of_float16() -> None:
    later = series("precision.nonfinite_fp16", [0, 0, 0.5, 1], "h.3", 3)
    earlier = series("precision.nonfinite_fp16", [0, 0, 0.1, 0.2], "h.1", 1)
    assert found(later, earlier, log=SCALED_LOG) == [("float16-overflow", "h.1", 30)]
    assert found(later, earlier) == [], "no run that trains in float16"
    in_forward = series("activation.overflow_fp16", [0, 0.01, 0.01], "h.2", 2)
    assert found(in_forward, log=SCALED_LOG) == [("float16-overflow", "h.2", 20)]
    assert found(series("precision.nonfinite_bf16", [0, 0.1], "h.2", 2)) == [("bfloat16-overflow", "h.2", 20)]


def test_where_a_replay_stops_being_finite() -> None:
    loss = series("replay.loss", [2.0, 1.5, math.nan], "", -1)
    fine = series("activation.variance", [1, 1, 1], "h.0", 0)
    broken = series("activation.variance", [1, 1, math.inf], "h.2", 2)
    after = series("residual.rms", [1, 1, math.nan], "h.3", 3)
    assert found(loss, fine, after, broken) == [("nonfinite-origin", "h.2", 30)]
    assert found(series("replay.loss", [2.0, 1.5, 1.4], "", -1), fine, broken) == []


@pytest.mark.parametrize("make", [relaxation_run, null_run, hover_run])
def test_healthy_runs_have_none(make) -> None:  # type: ignore[no-untyped-def]
    run = make()
    assert degradations(run.profile, run.log) == ()
    assert degradations(table(), run.log) == ()


def test_each_says_what_to_do_and_stands_among_the_pathologies() -> None:
    profile = table(series("activation.dead_share", [0.0, 0.9, 0.95]))
    (one,) = pathologies(profile, LOG, ())
    assert one.kind == "dead-units" and one.action.endswith(".") and "90%" in one.evidence
