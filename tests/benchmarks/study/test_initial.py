"""Whether the beginning tells the end: the task, the runs, and ranks within an architecture."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.study import initial
from benchmarks.study.case import Recall
from benchmarks.study.initial import BLEW_UP, FAILED, Begun, begun, cases, in_order, ranked
from benchmarks.study.initial_page import headline, section
from benchmarks.study.tasks import recalled


def one(number: int, *, norm: str = "none", depth: int = 2, failed: bool, **scores: float) -> Begun:
    return Begun(f"{norm}-{depth}-{number}", norm, depth, 0.01 * (1 + failed), 401, failed, failed, **scores)


def test_the_value_of_the_key_that_is_asked_for_stands_in_the_row() -> None:
    task = Recall(5, 9)
    tokens, values = recalled(task, 200, torch.Generator().manual_seed(0))
    assert tokens.shape == (200, 11)
    keys, kept = tokens[:, :-1:2], tokens[:, 1::2]
    assert (keys < 9).all() and ((kept >= 9) & (kept < 18)).all()
    assert all(len(set(row.tolist())) == 5 for row in keys)
    place = (keys == tokens[:, -1:]).int().argmax(dim=1, keepdim=True)
    assert torch.equal(kept.gather(1, place)[:, 0], values)
    assert len(set(place[:, 0].tolist())) == 5


def test_every_norm_depth_and_rate_has_runs_of_seeds_of_their_own() -> None:
    runs = cases()
    assert len(runs) == len({run.name for run in runs}) == 108
    assert set(Counter((run.model.norm, run.model.n_layer) for run in runs).values()) == {12}
    assert {run.split for run in runs} == {"fresh"} and 0 not in {run.seed for run in runs}


@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_an_area_and_within_strata_only_pairs_of_one_count(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    values, fail = drawn.integers(0, 6, 40).astype(float), drawn.random(40) < 0.4
    stratum = drawn.integers(0, 3, 40)
    assert in_order(values, fail, np.zeros(40, int)) == pytest.approx(roc_auc_score(fail, values))
    pairs = [
        (values[i] > values[j]) + 0.5 * (values[i] == values[j])
        for i in range(40)
        for j in range(40)
        if fail[i] and not fail[j] and stratum[i] == stratum[j]
    ]
    assert in_order(values, fail, stratum) == pytest.approx(np.mean(pairs))
    assert math.isnan(in_order(values, np.ones(40, bool), stratum))


def test_what_only_tells_the_norm_tells_nothing_within_it() -> None:
    runs = [
        one(k, norm=norm, failed=(k < 8) == (norm == "none"), near_unit_mass=mass, ratio=float(k < 8))
        for norm, mass in (("none", 0.8), ("pre", 0.2))
        for k in range(10)
    ]
    found = {entry.score: entry for entry in ranked(runs, FAILED)}
    assert found["near-unit mass"].overall.value == pytest.approx(0.8)
    assert found["near-unit mass"].within_norm.value == 0.5
    assert found["no norm *"].overall.value == pytest.approx(0.8)
    assert found["learning rate *"].within_architecture.value == 1
    told = headline(ranked(runs, FAILED))
    assert "area of 0.80" in told and "That a model has no norms, alone, has 0.80" in told
    assert "growing mass" not in found, "what was not measured is not ranked"


def test_runs_of_one_kind_cannot_be_ranked_and_the_page_says_so() -> None:
    runs = [one(k, failed=False, near_unit_mass=0.5) for k in range(4)]
    assert ranked(runs, BLEW_UP) == []
    text = "\n".join(section(runs))
    assert "nothing can be ranked" in text and "0 (0) of 4" in text


def test_a_run_is_read_once_with_its_first_steps(tmp_path) -> None:
    case = replace(cases((0,))[-1], steps=30)
    assert (case.model.norm, case.model.n_layer, case.update.learning_rate) == ("post", 2, 0.1)
    found = begun(case, tmp_path)
    assert 0 <= found.near_unit_mass <= 1 and found.spectral_radius > 0 and found.gradient_norm > 0
    assert found.failed and not found.blew_up, "thirty steps are too few to learn anything"
    again = begun(case, tmp_path)
    assert again == found
    # S is proportional to the rate: what it will be at the peak is S now times the peak over the rate now.
    from benchmarks.study.training import trained
    from hnf_offline.pipeline import measure
    from hnf_offline.run import open_run

    measured = measure(open_run(trained(case, tmp_path)), initial.SETTINGS, tmp_path / "again").table
    rows = measured.filter((measured["layer"] == "") & (measured["quantity"] == "hessian.stability_ratio"))
    now = dict(zip(rows["step"].to_list(), rows["value"].to_list(), strict=True))
    rates = measured.filter(measured["quantity"] == "optimizer.learning_rate")
    rate = dict(zip(rates["step"].to_list(), rates["value"].to_list(), strict=True))
    assert set(now) == {1, 10}
    assert found.ratio == pytest.approx(now[10] * 0.1 / rate[10])
    assert found.first_ratio == pytest.approx(now[1] * 0.1 / rate[1])
