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
from hnf_offline.profile.memory import copies_together, plan_memory, saved_bytes
from hnf_offline.profile.session import bytes_of_parameters
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate
from tests.profile.allocation import LiveBytes
from tests.profile.judged import (
    GPT2,
    hugging_face,
    settings,
    state_of,
    structured_rows,
    subject_of,
)


def peak_of(module: nn.Module, tokens: Tensor, work: Callable[[], object]) -> int:
    gc.collect()
    known = [*module.parameters(), *module.buffers(), tokens]
    with LiveBytes(known) as count:
        result = work()
    assert result is not None
    return count.peak


def planned(subject: Subject, tokens: Tensor, accuracy: str) -> tuple[Subject, int]:
    """As a profile would replay the rows on a machine that has plenty of memory, and the peak that it foresees."""
    row, ordinary = (saved_bytes(subject.module, tokens[:1], None, plain=plain) for plain in (True, False))
    size = bytes_of_parameters(subject.module)
    plan = plan_memory(row, len(tokens), size, 1 << 40, ordinary_bytes=ordinary, accuracy=accuracy)
    batch = ReplayBatch.of(tokens, None, "replay")
    cut = replace(
        subject,
        halves=batch.cut(min(len(tokens) // 2, plan.rows), torch.device("cpu")),
        batches=batch.cut(plan.rows, torch.device("cpu")),
        keep_graphs=plan.keep_graphs,
        lot_bytes=plan.lot_bytes,
        copies=copies_together(row, plan.rows, len(tokens)),
    )
    return cut, plan.peak_bytes


def trained(module: nn.Module, tokens: Tensor) -> Subject:
    """A model after three updates, with the optimizer's state."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for step in range(3):
        rows = structured_rows(8, step, vocabulary=int(tokens.max()) + 1, length=tokens.shape[1])
        evaluate(module, rows, None).loss.backward()
        optimizer.step()
    state = state_of(module, optimizer)
    optimizer.zero_grad(set_to_none=True)
    module.eval()
    return subject_of(module, tokens, None, state, 3)


def decoder(blocks: int = 6, length: int = 64) -> nn.Module:
    config = GPTConfig(128, length, blocks, 4, 64, norm="pre", tied=False)
    return GPT(config).initialise(torch.Generator().manual_seed(1))


def gpt2() -> nn.Module:
    pytest.importorskip("transformers")
    return hugging_face({
        **GPT2, "vocab_size": 128, "n_embd": 96, "n_inner": 384, "n_layer": 4, "n_head": 4, "n_positions": 64,
        "initializer_range": 0.05,
    })  # fmt: skip


class Encoder(nn.Module):
    """torch's encoder with a class for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(64, 64)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(input_ids)))  # type: ignore[no-any-return]


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
    # Few blocks and long rows: a gradient of some 50 MB at few operations to count. `FREE_FOR_COPIES` may be taken in
    # any case, so that beside a smaller gradient the peak is more.
    module, tokens = decoder(blocks=2, length=160), structured_rows(32, 7, vocabulary=128, length=160)
    subject, _ = planned(trained(module, tokens), tokens, "standard")

    def gradient() -> object:
        loss = evaluate(module, tokens, None).loss
        return torch.autograd.grad(loss, list(module.parameters()))

    ordinary = peak_of(module, tokens, gradient)
    ours = peak_of(module, tokens, lambda: measure(subject, settings("standard")))
    with capsys.disabled():
        print(
            f"\none gradient {ordinary / 1e6:.1f} MB, all curvature {ours / 1e6:.1f} MB: {ours / ordinary:.2f}x"
        )
    assert ours <= 1.2 * ordinary


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("build", "rows", "vocabulary", "length"),
    [(decoder, 8, 128, 64), (gpt2, 8, 128, 48), (Encoder, 16, 64, 32)],
    ids=["decoder", "GPT-2", "encoder"],
)
def test_a_plan_is_within_thirty_per_cent_of_the_peak(
    build: Callable[[], nn.Module],
    rows: int,
    vocabulary: int,
    length: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(1)
    module, tokens = build(), structured_rows(rows, 7, vocabulary=vocabulary, length=length)
    subject, foreseen = planned(trained(module, tokens), tokens, "screen")
    peak = bytes_of_parameters(module) + peak_of(module, tokens, lambda: measure(subject, settings("screen")))
    with capsys.disabled():
        print(f"\npeak {peak / 1e6:.1f} MB, planned {foreseen / 1e6:.1f} MB: {foreseen / peak:.2f}x")
    assert 0.7 <= foreseen / peak <= 1.3
