"""The local Lyapunov rate of a checkpoint: from its optimizer state, with the ends that S has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from hnf_offline.linalg.extremes import Eigenvalue, Extremes
from hnf_offline.profile import ProfileSettings
from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.local_rate import local_rate_rows
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.lyapunov import Mode, local_rate
from hnf_offline.run import open_run
from hnf_offline.run.model.layers import layers_of
from hnf_offline.run.optimizer import OptimizerState, ParameterState


def subject_of(kind: str, *states: ParameterState) -> Subject:
    module = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in states))
    cut = ReplayBatch.of(torch.zeros(1, 3, dtype=torch.int64), None, "rows").cut(1, torch.device("cpu"))
    own = {f"{number}.weight": state for number, state in enumerate(states)}
    return Subject(3, module, layers_of(module), OptimizerState(kind, own), cut, cut, "rows")


def extremes(ratio: float, residual: float = 0.0, *, certified: bool = True) -> Extremes:
    end = Eigenvalue(ratio, residual, certified)
    return Extremes(end, end, torch.ones(1), 1)


ADAM = ParameterState(learning_rate=0.1, beta1=0.9)


def test_a_recorded_run_has_the_rate_of_its_own_s(tiny: Path, tmp_path: Path) -> None:
    found = profile_run(open_run(tiny), ProfileSettings(tier="stability", device="cpu"), tmp_path).table
    of = {
        name: found.filter(quantity=name, layer="").sort("step")
        for name in ("hessian.stability_ratio", "lyapunov.local_rate")
    }
    ratios, rates = of["hessian.stability_ratio"], of["lyapunov.local_rate"]
    assert rates["step"].to_list() == ratios["step"].to_list() != []
    for ratio, row in zip(ratios["value"], rates.to_dicts(), strict=True):
        assert row["value"] == pytest.approx(local_rate(Mode(ratio, 0.9)))
        assert row["low"] <= row["value"] <= row["high"] and (row["value"] > 0) == (ratio > 1)


def test_the_band_holds_the_rates_of_every_ratio_within_that_of_s() -> None:
    (row,) = local_rate_rows(subject_of("adam", ADAM, ADAM), extremes(0.98, 0.02), (1e-6, 1.01))
    assert row.low is not None and row.high is not None and row.certified
    assert row.value == pytest.approx(local_rate(Mode(0.98, 0.9)))
    assert row.high == pytest.approx(local_rate(Mode(1.01, 0.9))) and row.high > 0
    assert row.low == pytest.approx(math.log(math.sqrt(0.9))), "the rate is lowest between the ends"
    (wide,) = local_rate_rows(subject_of("adam", ADAM), extremes(1.2), (1e-6, 1.3))
    assert wide.low == pytest.approx(math.log(math.sqrt(0.9))), "lower than at either end"
    (alone,) = local_rate_rows(subject_of("adam", ADAM), extremes(1.2, 0.1, certified=False), None)
    assert alone.low == alone.value and alone.high == pytest.approx(local_rate(Mode(1.3, 0.9)))
    assert not alone.certified


def test_momentum_of_sgd_and_its_look_ahead_are_used() -> None:
    for nesterov in (False, True):
        state = ParameterState(learning_rate=0.1, momentum=0.5, nesterov=nesterov)
        (row,) = local_rate_rows(subject_of("sgd", state), extremes(0.3), None)
        assert row.value == pytest.approx(local_rate(Mode(0.3, 0.5, nesterov)))


def test_without_one_momentum_there_is_no_rate() -> None:
    other = ParameterState(learning_rate=0.1, beta1=0.8)
    assert local_rate_rows(subject_of("adam", ADAM, other), extremes(1.2), None) == []
    assert local_rate_rows(subject_of("adam", ParameterState(learning_rate=0.1)), extremes(1.2), None) == []
    assert local_rate_rows(subject_of("other", ADAM), extremes(1.2), None) == []
