"""Curvature costs little more memory than one ordinary training gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.measure import measure
from hnf_offline.profile.memory import plan_memory, saved_bytes
from hnf_offline.profile.session import bytes_of_parameters
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate
from tests.profile.allocation import LiveBytes
from tests.profile.judged import settings, state_of, structured_rows, subject_of


def peak_of(module: nn.Module, tokens: Tensor, work: Callable[[], object]) -> int:
    gc.collect()
    known = [*module.parameters(), *module.buffers(), tokens]
    with LiveBytes(known) as count:
        result = work()
    assert result is not None
    return count.peak


def planned(subject: Subject, tokens: Tensor) -> Subject:
    """As a profile would replay the rows on a machine that has plenty of memory."""
    row, ordinary = (saved_bytes(subject.module, tokens[:1], None, plain=plain) for plain in (True, False))
    size = bytes_of_parameters(subject.module)
    plan = plan_memory(row, len(tokens), size, 1 << 40, ordinary_bytes=ordinary)
    batch = ReplayBatch.of(tokens, None, "replay")
    return replace(
        subject,
        halves=batch.cut(min(len(tokens) // 2, plan.rows), torch.device("cpu")),
        batches=batch.cut(plan.rows, torch.device("cpu")),
        keep_graphs=plan.keep_graphs,
        lot_bytes=plan.lot_bytes,
    )


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

    subject = planned(subject_of(module, tokens, None, state, 3), tokens)
    ordinary = peak_of(module, tokens, gradient)
    ours = peak_of(module, tokens, lambda: measure(subject, settings("standard")))
    with capsys.disabled():
        print(
            f"\none gradient {ordinary / 1e6:.1f} MB, all curvature {ours / 1e6:.1f} MB: {ours / ordinary:.2f}x"
        )
    assert ours <= 1.2 * ordinary
