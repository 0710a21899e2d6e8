"""Curvature costs little more memory than one ordinary training gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.profile.measure import measure
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate
from tests.profile.allocation import LiveBytes
from tests.profile.judged import settings, state_of, structured_rows, subject_of

pytestmark = pytest.mark.xfail(
    reason="the curvature engine is not yet what it shall be: which values it certifies, and its memory",
    run=False,
)


def peak_of(module: nn.Module, tokens: Tensor, work: Callable[[], object]) -> int:
    gc.collect()
    known = [*module.parameters(), *module.buffers(), tokens]
    with LiveBytes(known) as count:
        result = work()
    assert result is not None
    return count.peak


def test_the_count_sees_what_only_a_graph_holds() -> None:
    value = torch.ones(1000, requires_grad=True)
    with LiveBytes([value]) as count:
        result = (value.exp() * 2).sin().sum()  # exp and its double are saved for the backward pass
        gc.collect()
        assert 8000 <= count.now <= 8100
        assert count.peak >= 12000
        result.backward()
        del result
        gc.collect()
        assert count.now == 4000  # the gradient
        view = value.view(10, 100)
        assert count.now == 4000 and view.shape == (10, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_at_32_rows_the_peak_is_at_most_a_fifth_above_that_of_one_training_gradient(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = GPTConfig(128, 64, 6, 4, 64, norm="pre", tied=False)
    module = GPT(config).initialise(torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for step in range(3):
        evaluate(module, structured_rows(8, step, vocabulary=128, length=64), None).loss.backward()
        optimizer.step()
    state = state_of(module, optimizer)
    optimizer.zero_grad(set_to_none=True)
    module.eval()
    tokens = structured_rows(32, 7, vocabulary=128, length=64)

    def gradient() -> object:
        loss = evaluate(module, tokens, None).loss
        return torch.autograd.grad(loss, list(module.parameters()))

    subject: Subject = subject_of(module, tokens, None, state, 3)
    ordinary = peak_of(module, tokens, gradient)
    ours = peak_of(module, tokens, lambda: measure(subject, settings("standard")))
    with capsys.disabled():
        print(
            f"\none gradient {ordinary / 1e6:.1f} MB, all curvature {ours / 1e6:.1f} MB: {ours / ordinary:.2f}x"
        )
    assert ours <= 1.2 * ordinary
