"""The largest stable learning rate: the bracket holds the edge, and lr/S stands beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file

from hnf_offline.errors import InputError
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.largest_stable import FARTHEST, NARROW, bracket
from hnf_offline.rerun.whatif import whatif
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate

LITTLE = GPTConfig(vocab_size=5, block_size=6, n_layer=1, n_head=1, n_embd=4, norm="pre")
SETTINGS = ProfileSettings(tier="stability", device="cpu")


@given(edge=some.floats(1e-12, 1e6), away=some.floats(-5.9, 5.9))
def test_the_edge_lies_between_and_is_known_to_five_percent(edge: float, away: float) -> None:
    asked: list[float] = []

    def spikes(value: float) -> bool:
        asked.append(value)
        return value > edge

    stable, unstable = bracket(spikes, edge * 2**away)
    assert stable is not None and unstable is not None
    assert stable <= edge < unstable <= NARROW * stable * (1 + 1e-12)
    assert {stable, unstable} <= set(asked)
    assert len(asked) <= 14


@given(begin=some.floats(1e-9, 1e3), above=some.booleans())
def test_an_edge_out_of_reach_is_not_made_up(begin: float, above: bool) -> None:
    asked: list[float] = []

    def spikes(value: float) -> bool:
        asked.append(value)
        return not above

    stable, unstable = bracket(spikes, begin)
    assert (stable is None, unstable is None) == (not above, above)
    assert all(begin / FARTHEST * 0.999 <= value <= begin * FARTHEST * 1.001 for value in asked)


def dense_edge(path: Path, step: int) -> float:
    """2 / lambda_max of the whole training set, from the full Hessian of the checkpoint's weights."""
    run = open_run(path)
    module = GPT(LITTLE).double()
    point = next(one for one in run.checkpoints if one.step == step)
    weights = load_file(point.weight_files[0])
    module.load_state_dict({name: value.double() for name, value in weights.items()}, strict=False)
    tokens = load_file(path / "batches.safetensors")["input_ids"].long()
    parameters = list(module.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = evaluate(module, tokens, None).loss
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        flat = torch.cat([one.flatten() for one in gradients])
        rows = [
            torch.cat([one.flatten() for one in torch.autograd.grad(entry, parameters, retain_graph=True)])
            for entry in flat
        ]
    return 2 / float(torch.linalg.eigvalsh(torch.stack(rows)).max())


@pytest.mark.slow
def test_lr_over_s_is_the_edge_of_the_hessian_and_replays_find_it_near(record: Callable[..., Path]) -> None:
    path = record(optimizer=torch.optim.SGD, rate=lambda step: 0.5, model=LITTLE, steps=120)
    found = whatif(
        open_run(path), start=30, steps=90, policies=(), settings=SETTINGS, every=0, find_largest_stable=True
    ).largest_stable
    assert found is not None and found.from_curvature is not None
    assert found.from_curvature == pytest.approx(dense_edge(path, 30), rel=0.06)
    assert found.stable is not None and found.unstable is not None
    assert 0.5 < math.sqrt(found.stable * found.unstable) / found.from_curvature < 2
    spiky = {rate: spiked for rate, spiked, _ in found.tried}
    assert (spiky[found.stable], spiky[found.unstable]) == (False, True)
    assert f"a constant rate of {found.stable:.3g} does not spike" in found.text
    assert "times lr/S" in found.text


def test_a_rate_of_zero_is_refused_and_not_searched_forever(record: Callable[..., Path]) -> None:
    path = record(rate=lambda step: 3e-3 if step <= 10 else 0.0)
    with pytest.raises(InputError, match="learning rate 0 for step 11"):
        whatif(
            open_run(path),
            start=10,
            steps=5,
            policies=(),
            settings=SETTINGS,
            every=0,
            find_largest_stable=True,
        )
