"""The next update against the steps that torch's own optimizers take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hnf_offline.profile.update import full_update
from hnf_offline.run.optimizer import OptimizerState, ParameterState, RawOptimizer, match_optimizer
from hnf_offline.run.records import OptimizerSettings

OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {"lr": 0.02, "betas": (0.8, 0.9)}),
    (torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.2, "eps": 1e-3}),
    (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.2}),
    (torch.optim.AdamW, {"lr": 0.02, "betas": (0.5, 0.999), "eps": 1e-2}),
]


def trained(kind: type[torch.optim.Optimizer], options: dict[str, Any], steps: int):
    """A small network after some steps, its optimizer, and a loss."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    groups = [{"params": module[0].parameters()}, {"params": module[2].parameters(), "lr": 0.05}]
    optimizer = kind(groups, **options)

    def loss() -> torch.Tensor:
        return (module(inputs) - targets).square().mean()

    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return module, optimizer, loss


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The state by name, as a recorder saves it."""
    saved = optimizer.state_dict()
    named = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    names = [name for name, _ in named]
    groups = [{**group, "params": [names[key] for key in group["params"]]} for group in saved["param_groups"]]
    state = {names[key]: own for key, own in saved["state"].items()}
    raw = RawOptimizer(type(optimizer).__name__, tuple(groups), state, names=True)
    return match_optimizer(raw, named, OptimizerSettings(), Path("optimizer.pt"))


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_it_is_the_step_that_torch_takes(kind, options, steps) -> None:
    module, optimizer, loss = trained(kind, options, steps)
    state = state_of(module, optimizer)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer.zero_grad()
    loss().backward()
    gradients = {name: value.grad.clone() for name, value in module.named_parameters()}
    update = full_update(state, gradients, before)
    optimizer.step()
    assert update is not None
    for name, value in module.named_parameters():
        assert torch.allclose(before[name] - update[name], value.detach(), rtol=1e-12, atol=1e-14), name


def test_run_toml_tells_adam_from_adamw_where_an_old_file_does_not() -> None:
    module, optimizer, loss = trained(torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.2}, 3)
    saved = optimizer.state_dict()
    groups = [
        {key: value for key, value in group.items() if key != "decoupled_weight_decay"}
        for group in saved["param_groups"]
    ]
    named = [(name, tuple(value.shape)) for name, value in module.named_parameters()]
    raw = RawOptimizer(None, tuple(groups), saved["state"], names=False)
    silent = match_optimizer(raw, named, OptimizerSettings(), Path("o.pt"))
    told = match_optimizer(raw, named, OptimizerSettings(kind="adam"), Path("o.pt"))
    gradients = dict(zip(dict(named), torch.autograd.grad(loss(), list(module.parameters())), strict=True))
    weights = dict(module.named_parameters())
    coupled, decoupled = full_update(told, gradients, weights), full_update(silent, gradients, weights)
    exact = full_update(state_of(module, optimizer), gradients, weights)
    assert coupled is not None and decoupled is not None and exact is not None
    for name in gradients:
        assert torch.equal(coupled[name], exact[name])
    assert not torch.allclose(coupled["0.weight"], decoupled["0.weight"])


def test_a_parameter_without_state_is_not_moved_and_an_unknown_optimizer_is_not_guessed() -> None:
    gradients = {"a": torch.ones(2), "b": torch.ones(2)}
    weights = {"a": torch.zeros(2), "b": torch.zeros(2)}
    own = ParameterState(learning_rate=0.5)
    update = full_update(OptimizerState("sgd", {"a": own}), gradients, weights)
    assert update is not None
    assert update["a"].tolist() == [0.5, 0.5] and update["b"].tolist() == [0.0, 0.0]
    assert full_update(OptimizerState("other", {"a": own}), gradients, weights) is None
    assert full_update(OptimizerState("adam", {"a": own}), gradients, weights) is None
    assert full_update(OptimizerState("sgd", {"a": ParameterState()}), gradients, weights) is None


def test_momentum_that_was_not_saved_is_not_taken_for_zero() -> None:
    gradients, weights = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    own = ParameterState(learning_rate=0.5, momentum=0.9)
    assert full_update(OptimizerState("sgd", {"a": own}, saved=False), gradients, weights) is None
    first = full_update(OptimizerState("sgd", {"a": own}), gradients, weights)  # torch's first step
    assert first is not None and first["a"].tolist() == [0.5, 0.5]
