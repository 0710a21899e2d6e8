"""Findings of a table of mixed resolution: what is counted stays, what is told of one spike sharpens."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from hnf_offline.findings import Findings
from hnf_offline.relate.localise import first_layer
from hnf_offline.relate.series import points, zoomed_steps
from hnf_offline.relate.whole import find
from hnf_offline.table import Row, of_checkpoints, one_source, table

from .planted import Planted, relaxation, rows, run_of, spike

#: What is counted over the whole run.
COUNTED = ("relations", "regimes", "change_points", "growth", "pathologies", "replay_checks", "rates", "run")


def zoom_rows(quantity: str, steps: object, values: object, layer: str = "", depth: int = -1) -> list[Row]:
    return [replace(row, source="zoom") for row in rows(quantity, steps, values, layer, depth)]


def zoomed(made: Planted) -> pl.DataFrame:
    """Add S at every step of the checkpoint gaps up to each onset, between its neighbours, with some noise."""
    steps, ratio = points(made.profile, "hessian.stability_ratio")
    random = np.random.default_rng(5)
    added: list[Row] = []
    for onset in made.onsets:
        every = np.arange(max(onset - 48, steps[0]), onset)
        every = every[~np.isin(every, steps)]
        between = np.exp(np.interp(every, steps, np.log(ratio)) + 0.02 * random.normal(size=every.size))
        added += zoom_rows("hessian.stability_ratio", every, between)
        added += zoom_rows("optimizer.learning_rate", every, np.full(every.size, 1e-2))
    return pl.concat([made.profile, table(added)]).sort("step", maintain_order=True)


@pytest.fixture(scope="module")
def both() -> tuple[Findings, Findings]:
    made = relaxation(3, length=700)
    run = run_of(made.log, made.profile)
    return find(run, made.profile), find(run, zoomed(made))


def test_what_is_counted_over_the_run_is_not_moved_by_looking_closer_before_spikes(
    both: tuple[Findings, Findings],
) -> None:
    coarse, fine = (one.to_json() for one in both)
    assert coarse["spikes"] == fine["spikes"] != []
    assert coarse["relations"] != []
    for name in COUNTED:
        assert fine[name] == coarse[name], name
    assert fine["last_healthy_checkpoint"] in set(fine["run"]["checkpoint_steps"])


def test_leads_are_known_to_the_step(both: tuple[Findings, Findings]) -> None:
    coarse, fine = both
    sharper = 0
    for before, after in zip(coarse.stories, fine.stories, strict=True):
        if before.known_at is None or after.known_at is None:
            continue
        assert after.known_at <= before.known_at + 24, "a zoom forecasts once it has seen as much"
        assert before.resolution == 8
        sharper += after.resolution == 1
        if after.resolution == 1:
            assert after.lead_text == f"{after.lead} step" + ("" if after.lead == 1 else "s")
        if after.resolution == 1 and after.known_at % 8:
            assert f"at step {after.known_at}, {after.lead_text}" in after.sentence
            assert f"checkpoint {after.known_at}" not in str(after)
    assert sharper >= 3


def test_findings_carry_what_was_zoomed() -> None:
    made = relaxation(3, length=300)
    zoom = {
        "start": 80,
        "stop": 90,
        "word": "exact",
        "because": "10 losses equal",
        "loss_difference_max": 6e-7,
    }
    found = find(run_of(made.log, made.profile), made.profile, zooms=[zoom])
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["zooms"] == [zoom]
    assert all("resolution" in story for story in document["stories"])
    assert all({"policy", "tested"} <= set(one) for one in document["advice"])


def test_a_step_measured_twice_keeps_the_checkpoints_value() -> None:
    profile = pl.concat([
        table(rows("hessian.stability_ratio", [10, 20], [0.5, 0.6])),
        table(zoom_rows("hessian.stability_ratio", [15, 20], [0.55, 9.0])),
    ])
    steps, values = points(profile, "hessian.stability_ratio")
    assert dict(zip(steps.tolist(), values.tolist(), strict=True)) == {10: 0.5, 15: 0.55, 20: 0.6}
    assert zoomed_steps(profile, "hessian.stability_ratio") == {15}
    assert one_source(profile).height == 3
    assert of_checkpoints(profile)["step"].to_list() == [10, 20]
    assert of_checkpoints(profile.drop("source")).height == 4, (
        "a table of an older version has checkpoints only"
    )


def masses(steps: list[int], guilty_from: int, share: float = 0.6) -> tuple[list[float], list[float]]:
    moved = [share if step >= guilty_from else 0.05 for step in steps]
    return moved, [1 - one for one in moved]


@pytest.mark.parametrize("noisy", [False, True])
def test_the_first_layer_is_known_to_the_step_and_dense_rows_are_no_baseline(noisy: bool) -> None:
    saved, dense = list(range(10, 141, 10)), list(range(101, 150))
    dense = [step for step in dense if step not in saved]
    parts = [table(row) for row in _of(rows, saved, 127)] + [table(row) for row in _of(zoom_rows, dense, 127)]
    profile = pl.concat(parts)
    if noisy:  # one step at which another layer's share flickers
        flicker = (pl.col("step") == 105) & (pl.col("layer") == "calm")
        profile = profile.with_columns(value=pl.when(flicker).then(1.6).otherwise("value"))
    found = first_layer(profile, spike(1, 150))
    assert found is not None
    assert (found.layer, found.step) == ("guilty", 127)
    assert "0.60 against 0.05" in found.evidence


def _of(make: object, steps: list[int], guilty_from: int) -> list[list[Row]]:
    moved, rest = masses(steps, guilty_from)
    return [
        make("hessian.unstable_mass", steps, moved, "guilty", 1),  # type: ignore[operator]
        make("hessian.unstable_mass", steps, rest, "calm", 2),  # type: ignore[operator]
    ]
