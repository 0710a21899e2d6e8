"""What the flight recorder leaves is the run: it opens, it is exact, and it can be trained on from."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hnf_offline.errors import InputError
from hnf_offline.record import Recorder
from hnf_offline.run import load_optimizer, load_rows, load_weights, match_optimizer, open_run
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.run.records import Checkpoint, Run

CONFIG: dict[str, Any] = {
    "vocab_size": 9, "block_size": 5, "n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_width": 8, "norm": "pre",
}  # fmt: skip
ROWS, STEPS, EVERY = 4, 24, 8
TOKENS = torch.randint(0, 9, (STEPS, ROWS, 5), generator=torch.Generator().manual_seed(0))
MakeOptimizer = Callable[[GPT], torch.optim.Optimizer]


def adam(module: GPT) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01, betas=(0.9, 0.98))


def two_groups(module: GPT) -> torch.optim.Optimizer:
    matrices = [value for value in module.parameters() if value.ndim > 1]
    vectors = [value for value in module.parameters() if value.ndim == 1]
    return torch.optim.AdamW(
        [{"params": vectors, "lr": 0.002, "weight_decay": 0.0}, {"params": matrices, "lr": 0.005}],
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.1,
    )


def momentum(module: GPT) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def one_step(module: GPT, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    tokens = TOKENS[step - 1]
    loss = functional.cross_entropy(module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def record(
    folder: Path, make: MakeOptimizer = adam, steps: int = STEPS
) -> tuple[list[float], GPT, torch.optim.Optimizer]:
    """Train and record; give the exact losses, the trained module and its optimizer."""
    module = GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(1))
    optimizer = make(module)
    losses = []
    with Recorder(
        folder, every=EVERY, model={"model_type": "gpt", **CONFIG}, training={"seed": 1}
    ) as recorder:
        recorder.save_batches(TOKENS.flatten(0, 1), steps=torch.arange(1, STEPS + 1).repeat_interleave(ROWS))
        for step in range(1, steps + 1):
            loss = one_step(module, optimizer, step)
            losses.append(float(loss.detach()))
            recorder.record(step, module, optimizer, loss=loss, grad_norm=1.0)
    return losses, module, optimizer


def state_of(run: Run, checkpoint: Checkpoint) -> OptimizerState:
    raw = load_optimizer(checkpoint)
    assert raw is not None and run.model is not None
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    named = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    return match_optimizer(raw, named, run.optimizer, checkpoint.optimizer_files[0])


def test_a_recorded_run_opens_without_a_word_of_configuration(tmp_path: Path) -> None:
    losses, module, _ = record(tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.missing == () and run.skipped == ()
    assert [checkpoint.step for checkpoint in run.checkpoints] == [8, 16, 24]
    assert all(checkpoint.optimizer_files for checkpoint in run.checkpoints)
    assert run.log is not None
    assert run.log.rows["step"].to_list() == list(range(1, STEPS + 1))
    assert run.log.rows["loss"].to_list() == pytest.approx(losses, rel=1e-8)
    assert run.log.rows["learning_rate"].to_list() == [0.01] * STEPS
    assert run.configuration["training.seed"] == 1
    assert run.batches is not None and run.model is not None
    tokens, labels = load_rows(run.batches, tuple(run.batches.rows_of_step(3)))
    assert torch.equal(tokens, TOKENS[2]) and labels is None
    saved = load_weights(run.checkpoints[-1])
    assert saved.keys() == dict(module.named_parameters()).keys()
    for name, value in module.named_parameters():
        assert torch.equal(saved[name], value)


def test_recording_changes_nothing_and_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded, *_ = record(tmp_path / "run")
    module = GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(1))
    optimizer = adam(module)
    assert recorded == [float(one_step(module, optimizer, step).detach()) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("make", [adam, two_groups, momentum])
def test_the_optimizer_state_comes_back_exactly(tmp_path: Path, make: MakeOptimizer) -> None:
    _, module, optimizer = record(tmp_path / "run", make)
    run = open_run(tmp_path / "run")
    state = state_of(run, run.checkpoints[-1])
    assert state.kind == type(optimizer).__name__.lower()
    rates = {id(value): group for group in optimizer.param_groups for value in group["params"]}
    for name, parameter in module.named_parameters():
        own, truth, group = state.parameters[name], optimizer.state[parameter], rates[id(parameter)]
        assert own.learning_rate == group["lr"]
        assert own.weight_decay == group["weight_decay"]
        for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            assert (getattr(own, key) is None) == (truth.get(key) is None)
            if truth.get(key) is not None:
                assert torch.equal(getattr(own, key), truth[key])
        if "betas" in group:
            assert (own.beta1, own.beta2, own.eps, own.step) == (*group["betas"], group["eps"], STEPS)
        else:
            assert (own.momentum, own.nesterov, own.dampening) == (0.9, True, 0.0)
    if make is two_groups:
        assert {own.learning_rate for own in state.parameters.values()} == {0.002, 0.005}


def rebuild(run: Run, checkpoint: Checkpoint) -> tuple[GPT, torch.optim.Optimizer]:
    """Module and torch optimizer as they were after a checkpoint, from its files alone."""
    assert run.model is not None
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(module, GPT)
    load_weights_into(module, load_weights(checkpoint))
    state = state_of(run, checkpoint)
    groups = []
    for name, parameter in module.named_parameters():
        own = state.parameters[name]
        group: dict[str, Any] = {"params": [parameter], "lr": own.learning_rate}
        if state.kind == "sgd":
            group |= {"momentum": own.momentum, "nesterov": own.nesterov, "dampening": own.dampening}
        else:
            group |= {"betas": (own.beta1, own.beta2), "eps": own.eps, "weight_decay": own.weight_decay}
        groups.append(group)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[state.kind]
    optimizer = kind(groups)
    for name, parameter in module.named_parameters():
        own = state.parameters[name]
        if state.kind == "sgd":
            optimizer.state[parameter] = {"momentum_buffer": own.momentum_buffer}
        else:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(own.step or 0)),
                "exp_avg": own.exp_avg,
                "exp_avg_sq": own.exp_avg_sq,
            }
    return module, optimizer


@pytest.mark.parametrize("make", [adam, two_groups, momentum])
@pytest.mark.parametrize("number", [0, 1])
def test_training_on_from_a_checkpoint_repeats_the_run(
    tmp_path: Path, make: MakeOptimizer, number: int
) -> None:
    losses, original, _ = record(tmp_path / "run", make)
    run = open_run(tmp_path / "run")
    checkpoint = run.checkpoints[number]
    module, optimizer = rebuild(run, checkpoint)
    again = [
        float(one_step(module, optimizer, step).detach()) for step in range(checkpoint.step + 1, STEPS + 1)
    ]
    # The first loss has the saved weights alone; the others have the optimizer state in them.
    assert again[0] == losses[checkpoint.step]
    assert again == pytest.approx(losses[checkpoint.step :], rel=1e-6)
    for one, other in zip(module.parameters(), original.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_losses_that_are_not_numbers_are_kept(tmp_path: Path) -> None:
    module = GPT(GPTConfig(**CONFIG)).initialise(torch.Generator().manual_seed(1))
    optimizer = adam(module)
    with Recorder(tmp_path / "run", every=100) as recorder:
        for step, loss in enumerate([2.5, math.nan, math.inf, -math.inf], start=1):
            recorder.record(step, module, optimizer, loss=torch.tensor(loss), tokens=128)
    log = open_run(tmp_path / "run").log
    assert log is not None and log.skipped_lines == 0
    read = log.rows["loss"].to_list()
    assert read[0] == 2.5 and math.isnan(read[1]) and read[2:] == [math.inf, -math.inf]
    assert log.rows["tokens"].to_list() == [128.0] * 4


def test_a_learning_rate_that_is_a_tensor_is_kept(tmp_path: Path) -> None:
    record(tmp_path / "run", lambda module: torch.optim.Adam(module.parameters(), lr=torch.tensor(0.25)))
    run = open_run(tmp_path / "run")
    state = state_of(run, run.checkpoints[0])
    assert {own.learning_rate for own in state.parameters.values()} == {0.25}


def test_nothing_is_ever_recorded_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds files") as error:
        Recorder(tmp_path, every=1)
    assert error.value.path == tmp_path and error.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    Recorder(tmp_path / "empty", every=1).close()


def test_a_parameter_outside_of_the_module_is_named_by_its_shape(tmp_path: Path) -> None:
    module = GPT(GPTConfig(**CONFIG))
    temperature = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([*module.parameters(), temperature])
    with (
        Recorder(tmp_path / "run", every=1) as recorder,
        pytest.raises(InputError, match=r"shape \(3,\) that is no parameter of GPT"),
    ):
        recorder.record(1, module, optimizer, loss=1.0)


def test_a_condition_says_when_a_checkpoint_is_due(tmp_path: Path) -> None:
    module = GPT(GPTConfig(**CONFIG))
    optimizer = adam(module)
    with Recorder(tmp_path / "run", every=lambda step: step in {2, 3, 7}) as recorder:
        for step in range(1, 9):
            recorder.record(step, module, optimizer, loss=1.0)
    assert [point.step for point in open_run(tmp_path / "run").checkpoints] == [2, 3, 7]


CRASH = """
import os, sys, torch
from hnf_offline.record import Recorder
module = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
recorder = Recorder(sys.argv[1], every=4)
for step in range(1, 100):
    recorder.record(step, module, optimizer, loss=1.0 / step)
    if step == 10:
        os._exit(9)  # no flush, no close, no interpreter shutdown
"""


def test_a_process_that_dies_leaves_a_complete_log(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path / "run")], check=False)
    assert done.returncode == 9
    run = open_run(tmp_path / "run")
    assert run.log is not None and run.log.skipped_lines == 0
    assert run.log.rows["step"].to_list() == list(range(1, 11))
    assert [point.step for point in run.checkpoints] == [4, 8]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["format"] == "hnf_offline.record/1"
