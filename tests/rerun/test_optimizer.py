"""Rebuilt optimizers take the very steps that the saved ones would have taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hnf_offline.errors import InputError
from hnf_offline.record import describe_optimizer
from hnf_offline.rerun.optimizer import RATIO, kinds_of, rebuild_optimizer, state_of
from hnf_offline.retraining import EXACT, Reproduction
from hnf_offline.run.optimizer import RawOptimizer
from hnf_offline.run.records import OptimizerSettings

NOTHING = OptimizerSettings()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()


def saved(module: nn.Module, optimizer: torch.optim.Optimizer) -> RawOptimizer:
    """The state as the recorder writes it and the formats read it."""
    tensors, said = describe_optimizer(module, optimizer)
    state: dict[int | str, dict[str, object]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        state.setdefault(name, {"step": said["step"][name]} if said["step"] else {})[kind] = tensor.clone()
    return RawOptimizer(said["kind"], tuple(said["param_groups"]), state, names=True)


MADE: dict[str, tuple[str, Callable[..., torch.optim.Optimizer]]] = {
    "adam": ("adam", lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
    "adamw": ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)),
    "amsgrad": ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True)),
    "sgd": ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1)),
    "nesterov": ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
    "dampening": ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.5)),
    "upwards": ("sgd", lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9, maximize=True)),
}


@pytest.mark.parametrize("name", MADE)
def test_a_rebuilt_optimizer_goes_on_to_the_last_bit(name: str) -> None:
    kind, make = MADE[name]
    module = network()
    optimizer = make(module.parameters())
    train(module, optimizer, 3, seed=1)
    raw = saved(module, optimizer)
    other = network()
    other.load_state_dict(module.state_dict())
    assert kinds_of(raw, NOTHING) == (kind,)
    rebuilt = rebuild_optimizer(other, raw, kind, NOTHING, Path())
    train(module, optimizer, 3, seed=2)
    train(other, rebuilt, 3, seed=2)
    for ours, theirs in zip(other.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_training_on_writes_nothing_into_the_saved_state() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    train(module, optimizer, 3, seed=1)
    raw = saved(module, optimizer)
    before = {name: dict(state) for name, state in raw.state.items()}
    moments = {name: state["exp_avg"].clone() for name, state in raw.state.items()}
    train(module, rebuild_optimizer(module, raw, "adam", NOTHING, Path()), 3, seed=2)
    assert {name: dict(state) for name, state in raw.state.items()} == before
    assert all(torch.equal(raw.state[name]["exp_avg"], moment) for name, moment in moments.items())


def test_fresh_moments_are_none() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    train(module, optimizer, 3, seed=1)
    rebuilt = rebuild_optimizer(module, saved(module, optimizer), "adam", NOTHING, Path(), fresh=True)
    assert not rebuilt.state
    assert rebuilt.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("rates", "said", "ratios"),
    [
        ([0.02, 0.01], {}, [1.0, 0.5]),
        ([0.0, 0.01], {}, [0.0, 1.0]),
        ([0.0, 0.0], {}, [1.0, 1.0]),
        ([0.02, 0.01], {"learning_rate": 0.5}, [1.0, 0.5]),
    ],
)
def test_groups_keep_their_ratio_to_the_first(
    rates: list[float], said: dict[str, float], ratios: list[float]
) -> None:
    module = network()
    groups = [
        {"params": module[0].parameters(), "lr": rates[0]},
        {"params": module[2].parameters(), "lr": rates[1]},
    ]
    raw = saved(module, torch.optim.SGD(groups))
    rebuilt = rebuild_optimizer(module, raw, "sgd", OptimizerSettings(**said), Path())  # type: ignore[arg-type]
    assert [group[RATIO] for group in rebuilt.param_groups] == ratios


def test_rates_that_are_all_zero_keep_the_ratios_they_began_with() -> None:
    module = network()
    groups = [{"params": module[0].parameters(), "lr": 1.0}, {"params": module[2].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)  # a warm-up from 0
    rebuilt = rebuild_optimizer(module, saved(module, optimizer), "sgd", NOTHING, Path())
    assert [group[RATIO] for group in rebuilt.param_groups] == [1.0, 0.1]


def test_a_run_saved_while_its_rate_was_zero_goes_on(
    record: Callable[..., Path], verdict: Callable[..., Reproduction]
) -> None:
    found = verdict(record(rate=lambda step: 0.0 if step <= 11 else 3e-3))
    assert (found.word, found.found) == (EXACT, ()), found.because


@pytest.mark.parametrize(
    ("kind", "group", "kinds"),
    [
        (None, {"betas": (0.9, 0.999), "weight_decay": 0.1}, ("adamw", "adam")),
        (None, {"betas": (0.9, 0.999), "weight_decay": 0.0}, ("adamw",)),
        (None, {"betas": (0.9, 0.999), "weight_decay": 0.1, "decoupled_weight_decay": False}, ("adam",)),
        ("SGD", {"momentum": 0.9}, ("sgd",)),
        ("Lion", {"betas": (0.9, 0.99)}, ()),
    ],
)
def test_what_a_state_can_belong_to(
    kind: str | None, group: dict[str, object], kinds: tuple[str, ...]
) -> None:
    moments = (
        {} if kind in {"SGD", "Lion"} else {"exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1), "step": 1}
    )
    raw = RawOptimizer(kind, ({"lr": 0.1, "params": [0], **group},), {0: moments}, names=False)
    found = kinds_of(raw, NOTHING)
    if kind is None and not group["weight_decay"]:
        assert len(found) == 1  # without decay the two are one
    else:
        assert found == kinds


def test_an_unknown_optimizer_is_refused() -> None:
    raw = RawOptimizer("Lion", ({"lr": 0.1, "params": ["0.weight"]},), {}, names=True)
    with pytest.raises(InputError, match="cannot be rebuilt"):
        rebuild_optimizer(network(), raw, "other", NOTHING, Path())


def test_a_living_state_is_read_with_its_present_rate() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    train(module, optimizer, 3, seed=1)
    optimizer.param_groups[0]["lr"] = 0.5
    state = state_of(optimizer, module, "adam").parameters["2.bias"]
    assert (state.learning_rate, state.step) == (0.5, 3)
    assert state.exp_avg is not None
    assert torch.equal(state.exp_avg, optimizer.state[module[2].bias]["exp_avg"])
