"""What run.toml, configuration and log say of an optimizer whose state was not saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hnf_offline.run.assumed import assumed_state
from hnf_offline.run.records import Log, OptimizerSettings, Run

NAMES = ("a", "b")


def run_of(
    rows: dict[str, list[Any]] | None = None,
    settings: OptimizerSettings = OptimizerSettings(),  # noqa: B008
    **configuration: Any,
) -> Run:
    log = None if rows is None else Log(pl.DataFrame(rows), (Path("log.jsonl"),))
    found = {name.replace("__", "."): value for name, value in configuration.items()}
    return Run(Path("run"), "run", (), log, None, None, optimizer=settings, configuration=found)


def logged(steps: list[int], norms: list[float], rate: float = 0.1) -> dict[str, list[Any]]:
    return {"step": steps, "grad_norm": norms, "learning_rate": [rate * step for step in steps]}


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
def test_the_total_second_moment_is_the_one_that_adam_gathers(beta2: float) -> None:
    steps = list(range(1, 61))
    norms = [math.exp(math.sin(step)) for step in steps]
    moment = 0.0
    for norm in norms[:50]:
        moment = beta2 * moment + (1 - beta2) * norm**2
    run = run_of(logged(steps, norms), OptimizerSettings(kind="adam", betas=(0.8, beta2), eps=1e-6))
    state, reason = assumed_state(run, NAMES, 50)
    assert state is not None and reason == ""
    assert state.total_second_moment == pytest.approx(moment / (1 - beta2**50), rel=1e-9)
    own = state.parameters["a"]
    assert (state.kind, state.saved, state.moments_known) == ("adam", False, False)
    assert (own.beta1, own.beta2, own.eps, own.step) == (0.8, beta2, 1e-6, 50)
    assert own.exp_avg is own.exp_avg_sq is None
    assert own.learning_rate == pytest.approx(0.1 * 51)  # the next update's, not the last one's


def test_norms_that_were_clipped_enter_as_they_were_applied() -> None:
    settings = OptimizerSettings(kind="adamw", max_grad_norm=2.0)
    state, _ = assumed_state(run_of(logged([1, 2, 3], [7.0, 7.0, 7.0]), settings), NAMES, 3)
    assert state is not None and state.total_second_moment == pytest.approx(4.0)


def test_a_log_of_every_tenth_step_stands_for_the_steps_between() -> None:
    steps = list(range(10, 510, 10))
    run = run_of(logged(steps, [3.0] * len(steps)), OptimizerSettings(kind="adamw", betas=(0.9, 0.99)))
    state, _ = assumed_state(run, NAMES, 400)
    assert state is not None and state.total_second_moment == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (list(range(300, 401)), "begins too late for the memory of a thousand steps"),
        ([1, 400], "two norms cannot stand for four hundred steps"),
        (list(range(1, 201)), "ends long before the checkpoint"),
    ],
)
def test_norms_that_do_not_cover_the_memory_give_no_estimate(steps: list[int], why: str) -> None:
    run = run_of(logged(steps, [1.0] * len(steps)), OptimizerSettings(kind="adam", betas=(0.9, 0.999)))
    state, reason = assumed_state(run, NAMES, 400)
    assert state is None, why
    assert "gradient norms" in reason


def test_steps_without_a_finite_norm_are_no_part_of_it() -> None:
    norms = [2.0, math.nan, math.inf, 2.0, 2.0]
    state, _ = assumed_state(
        run_of(logged([1, 2, 3, 4, 5], norms), OptimizerSettings(kind="adam", betas=(0.9, 0.99))), NAMES, 5
    )
    assert state is None  # one norm would stand for three of five steps
    long = [2.0] * 50
    long[10] = math.nan
    state, _ = assumed_state(
        run_of(logged(list(range(1, 51)), long), OptimizerSettings(kind="adam", betas=(0.9, 0.99))), NAMES, 50
    )
    assert state is not None and state.total_second_moment == pytest.approx(4.0)


def test_sgd_needs_no_moments() -> None:
    settings = OptimizerSettings(kind="sgd", learning_rate=0.3, momentum=0.9, nesterov=True)
    state, reason = assumed_state(run_of(None, settings), NAMES, 7)
    assert state is not None and reason == ""
    own = state.parameters["b"]
    assert (own.learning_rate, own.momentum, own.nesterov) == (0.3, 0.9, True)
    assert not state.moments_known and state.total_second_moment is None
    plain = OptimizerSettings(kind="sgd", learning_rate=0.3, momentum=0.0)
    state, _ = assumed_state(run_of(None, plain), NAMES, 7)
    assert state is not None and state.moments_known


def test_the_configuration_names_the_optimizer_where_run_toml_does_not() -> None:
    rows = logged([1, 2, 3], [1.0, 1.0, 1.0])
    run = run_of(rows, optimizer__kind="SGD", optimizer__momentum=0.9)
    state, _ = assumed_state(run, NAMES, 2)
    assert state is not None
    assert (state.kind, state.parameters["a"].momentum) == ("sgd", 0.9)
    run = run_of(rows, training__optim="adamw_torch_fused", optimizer__adam_beta2=0.95)
    state, _ = assumed_state(run, NAMES, 2)
    assert state is not None
    assert (state.kind, state.parameters["a"].beta1, state.parameters["a"].beta2) == ("adamw", 0.9, 0.95)


def test_where_nobody_names_an_optimizer_it_is_taken_for_adamw_with_torchs_defaults() -> None:
    state, _ = assumed_state(run_of(logged([1, 2], [1.0, 1.0])), NAMES, 1)
    assert state is not None and state.kind == "adamw"
    own = state.parameters["a"]
    assert (own.beta1, own.beta2, own.eps) == (0.9, 0.999, 1e-8)


@pytest.mark.parametrize(
    ("rows", "settings", "configuration", "reason"),
    [
        (None, OptimizerSettings(), {}, "learning rate"),
        ({"step": [1], "grad_norm": [1.0]}, OptimizerSettings(), {}, "learning rate"),
        (logged([1], [1.0]), OptimizerSettings(kind="sgd"), {}, "momentum"),
        (logged([1], [1.0]), OptimizerSettings(kind="other"), {}, "not known"),
        (logged([1], [1.0]), OptimizerSettings(), {"optimizer__kind": "Lion"}, "not known"),
        (logged([1], [1.0]), OptimizerSettings(), {"optimizer__momentum": 0.95}, "not known"),
        ({"step": [1], "learning_rate": [0.1]}, OptimizerSettings(), {}, "gradient norms"),
    ],
)
def test_what_is_not_known_is_not_made_up(rows, settings, configuration, reason) -> None:
    state, said = assumed_state(run_of(rows, settings, **configuration), NAMES, 1)
    assert state is None and reason in said
