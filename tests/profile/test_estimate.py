"""S without optimizer state: exact for SGD, an estimate that says so for Adam, nothing where nothing is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.estimate import estimated_metric, is_estimable
from hnf_offline.profile.measure import measure
from hnf_offline.profile.metric import step_metric
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.estimate import estimated_second_moment
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.run.optimizer import OptimizerState, ParameterState
from hnf_offline.table import Row

TOKENS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
STABILITY = ProfileSettings(tier="stability", accuracy="converged", dtype="float64")


def gpt() -> GPT:
    config = GPTConfig(11, 6, 2, 2, 8, mlp_width=12, norm="pre", tied=True, initial_std=0.3)
    return GPT(config).initialise(torch.Generator().manual_seed(1)).double().eval()


def subject_of(module: GPT, state: OptimizerState, *, several: bool = False) -> Subject:
    whole = ReplayBatch.of(TOKENS, None, "replay")
    halves = [ReplayBatch.of(TOKENS[:2], None, "one"), ReplayBatch.of(TOKENS[2:], None, "two")]
    cut = whole.cut(4, torch.device("cpu"))
    parts = tuple(half.cut(2, torch.device("cpu")) for half in halves) if several else ()
    return Subject(7, module, layers_of(module), state, cut, cut, "replay", parts, "one")


def assumed(module: GPT, total: float) -> OptimizerState:
    own = ParameterState(learning_rate=0.01, beta1=0.9, beta2=0.99, eps=1e-8, step=40)
    names = [name for name, _ in module.named_parameters()]
    return OptimizerState("adam", dict.fromkeys(names, own), saved=False, total_second_moment=total)


def gradients_of(module: GPT, tokens: Tensor) -> dict[str, Tensor]:
    loss = torch.nn.functional.cross_entropy(module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return dict(
        zip(
            dict(module.named_parameters()), torch.autograd.grad(loss, list(module.parameters())), strict=True
        )
    )


def only(rows: list[Row], quantity: str) -> Row:
    (row,) = [row for row in rows if row.quantity == quantity and row.layer == ""]
    return row


def test_the_second_moment_keeps_its_sum_and_leans_towards_its_mean() -> None:
    square = torch.tensor([0.0, 4.0, 2.0])
    assert estimated_second_moment(square, 3.0).tolist() == [3.0, 9.0, 6.0]
    assert estimated_second_moment(square, 3.0).sum() == 3 * square.sum()


@pytest.mark.parametrize("several", [False, True])
def test_the_estimate_is_s_for_a_state_that_holds_what_was_estimated(several: bool) -> None:
    module = gpt()
    total = 5.0
    squares = {name: gradient.square() for name, gradient in gradients_of(module, TOKENS).items()}
    if several:
        parts = [gradients_of(module, TOKENS[:2]), gradients_of(module, TOKENS[2:])]
        squares = {name: (parts[0][name].square() + parts[1][name].square()) / 2 for name in squares}
    scale = total / float(sum(square.sum() for square in squares.values()))
    second = {name: scale * (square + square.mean()) / 2 for name, square in squares.items()}
    assert float(sum(one.sum() for one in second.values())) == pytest.approx(total)
    saved = OptimizerState(
        "adam",
        {
            name: ParameterState(
                learning_rate=0.01,
                beta1=0.9,
                beta2=0.99,
                eps=1e-8,
                step=40,
                exp_avg=torch.zeros_like(one),
                exp_avg_sq=one * (1 - 0.99**40),
            )
            for name, one in second.items()
        },
    )
    truth = only(measure(subject_of(module, saved, several=several), STABILITY), "hessian.stability_ratio")
    rows = measure(subject_of(module, assumed(module, total), several=several), STABILITY)
    estimate = only(rows, "estimate.stability_ratio")
    assert estimate.value == pytest.approx(truth.value, rel=1e-4)
    assert not estimate.certified and "estimated" in estimate.batch
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < estimate.value < estimate.high
    names = {row.quantity for row in rows}
    assert not names & {"hessian.stability_ratio", "optimizer.headroom", "optimizer.largest_stable_lr"}
    assert not names & {"optimizer.learning_rate", "adam.lag_rms", "hessian.unstable_mass"}
    assert not any(name.startswith("update.") for name in names)


def test_it_scales_as_s_does_with_the_size_of_the_second_moment() -> None:
    module = gpt()
    small, large = (
        only(measure(subject_of(module, assumed(module, total)), STABILITY), "estimate.stability_ratio").value
        for total in (1.0, 100.0)
    )
    assert small == pytest.approx(10 * large, rel=1e-4)


def test_without_a_gradient_there_is_nothing_to_shape_it_by() -> None:
    module = gpt()
    zero = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    assert estimated_metric(subject_of(module, assumed(module, 1.0)), zero) is None
    assert not is_estimable(None)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_s_of_sgd_needs_no_state(momentum: float, nesterov: bool) -> None:
    module = gpt()
    own = ParameterState(learning_rate=0.2, momentum=momentum, nesterov=nesterov)
    names = [name for name, _ in module.named_parameters()]
    state = OptimizerState("sgd", dict.fromkeys(names, own), saved=False)
    rows = measure(subject_of(module, state), STABILITY)
    ratio = only(rows, "hessian.stability_ratio")
    raw = only(measure(subject_of(module, state), ProfileSettings(accuracy="converged", dtype="float64")),
               "hessian.lambda_max")  # fmt: skip
    limit = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)
    assert ratio.value == pytest.approx(0.2 * raw.value / limit, rel=1e-4)
    assert ratio.certified
    assert step_metric(state, dict(module.named_parameters())) is not None
    along_update = "hessian.update_direction" in {row.quantity for row in rows}
    assert along_update == (momentum == 0.0)  # the momentum buffer was not saved


def hide_states(run: Path) -> Path:
    """Take the optimizer states away, and let the log have the gradient norms of a real run."""
    hidden = [file for file in run.rglob("optimizer*") if file.is_file()]
    assert hidden
    for file in hidden:
        file.unlink()
    return run


def test_a_run_without_states_is_estimated_and_no_alarm_reads_the_estimate(
    tiny: Path, tmp_path: Path
) -> None:
    run = open_run(hide_states(tiny))
    table = profile_run(run, ProfileSettings(tier="stability"), tmp_path / "out").table
    estimates = table.filter(table["quantity"] == "estimate.stability_ratio")
    assert estimates.height == len(run.checkpoints)
    assert not estimates["certified"].any()
    assert "hessian.stability_ratio" not in set(table["quantity"])


def test_without_norms_in_the_log_s_is_left_out(tiny: Path, tmp_path: Path) -> None:
    log = tiny / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "grad_norm"}) + "\n" for row in rows)
    )
    table = profile_run(
        open_run(hide_states(tiny)), ProfileSettings(tier="stability"), tmp_path / "out"
    ).table
    assert not {name for name in set(table["quantity"]) if "stability_ratio" in name}


def test_a_log_with_other_norms_makes_the_estimate_anew(tiny: Path, tmp_path: Path) -> None:
    hide_states(tiny)
    first = profile_run(open_run(tiny), ProfileSettings(tier="stability"), tmp_path / "out")
    again = profile_run(open_run(tiny), ProfileSettings(tier="stability"), tmp_path / "out")
    assert (first.computed, again.computed) == (6, 0)
    log = tiny / "log.jsonl"
    rows = [{**json.loads(line), "grad_norm": 3.0} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = profile_run(open_run(tiny), ProfileSettings(tier="stability"), tmp_path / "out")
    assert changed.computed == 6
    pick = [
        t.filter(t["quantity"] == "estimate.stability_ratio")["value"] for t in (first.table, changed.table)
    ]
    assert torch.allclose(torch.tensor((pick[0] / pick[1]).to_list()), torch.tensor(3.0), rtol=0.05)
