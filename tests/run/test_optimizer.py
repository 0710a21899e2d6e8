from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hnf_offline.errors import AmbiguousOptimizerError, InputError
from hnf_offline.run.formats.torch_file import raw_optimizer
from hnf_offline.run.optimizer import OptimizerState, ParameterState, RawOptimizer, match_optimizer
from hnf_offline.run.records import OptimizerSettings

FILE = Path("optimizer.pt")


def matched(module: Any, optimizer: Any, said: OptimizerSettings | None = None) -> OptimizerState:
    raw = raw_optimizer(optimizer.state_dict(), FILE)
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    return match_optimizer(raw, shapes, said or OptimizerSettings(), FILE)


def assert_right(state: OptimizerState, module: Any, optimizer: Any) -> None:
    for name, parameter in module.named_parameters():
        expected = optimizer.state[parameter]["exp_avg_sq"]
        found = state.parameters[name].exp_avg_sq
        assert found is not None and torch.equal(found, expected), name


def test_one_group_in_model_order(make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, betas=(0.5, 0.9), eps=1e-3)
    make.train(module, optimizer)
    state = matched(module, optimizer)
    assert_right(state, module, optimizer)
    one = state.parameters["0.weight"]
    assert (one.learning_rate, one.beta1, one.beta2, one.eps, one.step) == (0.1, 0.5, 0.9, 1e-3, 3)
    assert state.kind == "adam"


def test_what_the_user_says_wins_over_what_was_saved(make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.3)
    make.train(module, optimizer)
    said = OptimizerSettings(learning_rate=0.2, eps=1e-4, weight_decay=0.0)
    one = matched(module, optimizer, said).parameters["0.weight"]
    assert (one.learning_rate, one.eps, one.weight_decay) == (0.2, 1e-4, 0.0)
    assert matched(module, optimizer).parameters["0.weight"].weight_decay == 0.3


@pytest.mark.parametrize("decayed_first", [True, False])
def test_the_trainers_two_groups(make: Any, decayed_first: bool) -> None:
    module = make.module()
    named = list(module.named_parameters())
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups if decayed_first else groups[::-1], lr=0.1)
    make.train(module, optimizer)
    state = matched(module, optimizer)
    assert_right(state, module, optimizer)
    assert state.kind == "adamw"
    assert [state.parameters[name].weight_decay for name in ("0.weight", "0.bias")] == [0.1, 0.0]


def test_a_model_without_decay_on_embeddings_is_not_guessed() -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(4)))
    first, *rest = module.parameters()
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": [first], "weight_decay": 0.0}])
    module(torch.randn(2, 4)).square().mean().backward()
    optimizer.step()
    with pytest.raises(AmbiguousOptimizerError, match=r"more than one way.*hnf_offline\.record"):
        matched(module, optimizer)


def test_names_saved_by_torch_decide_where_shapes_cannot() -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(4)))
    backwards = list(module.named_parameters())[::-1]
    optimizer = torch.optim.AdamW(backwards)
    module(torch.randn(2, 4)).square().mean().backward()
    optimizer.step()
    assert_right(matched(module, optimizer), module, optimizer)


def test_state_of_another_model_is_refused(make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.Adam(module.parameters())
    make.train(module, optimizer)
    raw = raw_optimizer(optimizer.state_dict(), FILE)
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    with pytest.raises(AmbiguousOptimizerError, match="6 parameters and the model has 5"):
        match_optimizer(raw, shapes[:-1], OptimizerSettings(), FILE)
    with pytest.raises(AmbiguousOptimizerError, match="in no order"):
        match_optimizer(raw, [(name, (9, *shape)) for name, shape in shapes], OptimizerSettings(), FILE)
    named = RawOptimizer(None, ({"params": ["w"]},), {"w": {"exp_avg_sq": torch.ones(2)}}, names=True)
    with pytest.raises(AmbiguousOptimizerError, match="no parameter of the model"):
        match_optimizer(named, [("v", (2,))], OptimizerSettings(), FILE)
    with pytest.raises(AmbiguousOptimizerError, match=r"shape \(2,\), the parameter has \(3,\)"):
        match_optimizer(named, [("w", (3,))], OptimizerSettings(), FILE)


def test_names_below_the_attribute_of_a_trainers_module_are_those_of_the_model() -> None:
    def state(*names: str) -> RawOptimizer:
        return RawOptimizer(
            None,
            ({"params": list(names)},),
            {name: {"exp_avg_sq": torch.ones(2)} for name in names},
            names=True,
        )

    shapes = [("w", (2,)), ("b.c", (2,))]
    found = match_optimizer(state("net.w", "net.b.c"), shapes, OptimizerSettings(), FILE)
    assert set(found.parameters) == {"w", "b.c"}
    for names in (("net.w", "other.b.c"), ("w", "w.w"), ("net.w", "net.d")):
        with pytest.raises(AmbiguousOptimizerError, match="no parameter of the model"):
            match_optimizer(state(*names), shapes, OptimizerSettings(), FILE)


def test_sgd_with_momentum(make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    make.train(module, optimizer)
    state = matched(module, optimizer)
    assert state.kind == "sgd"
    one = state.parameters["2.bias"]
    assert (one.momentum, one.nesterov, one.dampening, one.beta2) == (0.9, True, 0.0, None)
    assert one.momentum_buffer is not None
    with pytest.raises(InputError, match="no bias-corrected second moment"):
        one.second_moment()


def test_plain_sgd_has_settings_and_no_state(make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    make.train(module, optimizer)
    state = matched(module, optimizer)
    assert state.kind == "sgd" and {p.learning_rate for p in state.parameters.values()} == {0.1}


@pytest.mark.parametrize(
    "other", [torch.optim.RMSprop, torch.optim.RAdam, torch.optim.NAdam, torch.optim.Adagrad]
)
def test_other_optimizers_are_not_taken_for_adam(make: Any, other: Any) -> None:
    module = make.module()
    optimizer = other(module.parameters(), lr=0.1)
    make.train(module, optimizer)
    assert matched(module, optimizer).kind == "other"


def test_amsgrad_preconditions_with_the_running_maximum(make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.Adam(module.parameters(), amsgrad=True)
    make.train(module, optimizer, steps=5)
    first = next(iter(module.parameters()))
    found = matched(module, optimizer).parameters["0.weight"].exp_avg_sq
    assert found is not None and torch.equal(found, optimizer.state[first]["max_exp_avg_sq"])


def test_run_toml_wins(make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    make.train(module, optimizer)
    said = OptimizerSettings(kind="adamw", learning_rate=0.7, betas=(0.1, 0.2), eps=0.5)
    state = matched(module, optimizer, said)
    one = state.parameters["0.weight"]
    assert (state.kind, one.learning_rate, one.beta1, one.beta2, one.eps) == ("adamw", 0.7, 0.1, 0.2, 0.5)


def test_second_moment_is_bias_corrected() -> None:
    # With constant gradients v_t = (1 - beta2^t) g^2, so v_hat = g^2 at every step.
    for step in (1, 2, 100):
        state = ParameterState(beta2=0.99, step=step, exp_avg_sq=torch.tensor([(1 - 0.99**step) * 9.0]))
        torch.testing.assert_close(state.second_moment(), torch.tensor([9.0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["matrix", "vector"]), min_size=1, max_size=12), st.booleans())
def test_matrices_and_vectors_are_told_apart_in_any_order(kinds: list[str], swapped: bool) -> None:
    shapes = [(f"p{n}.weight", (2, 2) if kind == "matrix" else (2,)) for n, kind in enumerate(kinds)]
    dealt = sorted(range(len(shapes)), key=lambda n: (len(shapes[n][1]) < 2) != swapped)
    state = {at: {"exp_avg_sq": torch.full(shapes[n][1], float(n))} for at, n in enumerate(dealt)}
    cut = sum((len(shape) < 2) == swapped for _, shape in shapes)
    groups = ({"params": list(range(cut))}, {"params": list(range(cut, len(shapes)))})
    found = match_optimizer(RawOptimizer(None, groups, state, False), shapes, OptimizerSettings(), FILE)
    for n, (name, _) in enumerate(shapes):
        moment = found.parameters[name].exp_avg_sq
        assert moment is not None and bool((moment == n).all())


@pytest.mark.real
def test_the_trainers_own_file(data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from hnf_offline.run import load_optimizer, open_run

    run = open_run(data / "runs" / "hf_trainer_llama_spike")
    checkpoint = next(c for c in run.checkpoints if c.step == 150)
    raw = load_optimizer(checkpoint)
    assert raw is not None and checkpoint.config_file is not None
    config = transformers.AutoConfig.from_pretrained(checkpoint.config_file.parent)
    module = transformers.AutoModelForCausalLM.from_config(config)
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    state = match_optimizer(raw, shapes, run.optimizer, checkpoint.path)
    assert state.kind == "adamw" and list(state.parameters) == [name for name, _ in shapes]
    embedding = state.parameters["model.embed_tokens.weight"]
    assert (embedding.step, embedding.learning_rate) == (150, 0.05)
