"""A tiny recorded run that every test of retraining starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.session import Session, open_session
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.record import Recorder
from hnf_offline.rerun.data import Rates
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start, open_start
from hnf_offline.rerun.training import Training
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate

MODEL = GPTConfig(vocab_size=17, block_size=12, n_layer=2, n_head=2, n_embd=16, norm="pre")
STEPS, ROWS, EVERY = 40, 6, 10


def record_run(
    directory: Path,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    rate: Callable[[int], float] = lambda step: 3e-3,
    clip: float | None = None,
    steps: int = STEPS,
    seed: int = 0,
    **settings: object,
) -> Path:
    """Train the tiny model for some steps and record everything a replay needs."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, MODEL.vocab_size, (steps * ROWS, MODEL.block_size), generator=generator)
    tokens[:, 1::2] = tokens[:, ::2]  # something to learn
    module = GPT(MODEL).initialise(torch.Generator().manual_seed(seed))
    inner = optimizer(module.parameters(), lr=rate(1), **settings)
    with Recorder(directory, every=EVERY, model={"model_type": "gpt", **asdict(MODEL)}) as recorder:
        recorder.save_batches(tokens, steps=torch.arange(1, steps + 1).repeat_interleave(ROWS))
        for step in range(1, steps + 1):
            used = rate(step)
            for group in inner.param_groups:
                group["lr"] = used
            inner.zero_grad()
            loss = evaluate(module, tokens[(step - 1) * ROWS : step * ROWS], None).loss
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            inner.step()
            for group in inner.param_groups:
                group["lr"] = rate(step + 1)
            recorder.record(step, module, inner, loss=loss, grad_norm=norm, learning_rate=used)
    return directory


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_run(tmp_path_factory.mktemp("tiny") / "run")


def session_of(path: Path) -> tuple[object, Session]:
    run = open_run(path)
    session = open_session(run, ProfileSettings(tier="stability", device="cpu"))
    assert session is not None
    return run, session


@pytest.fixture
def start(recorded: Path) -> Start:
    run, session = session_of(recorded)
    return open_start(run, session, 10)  # type: ignore[arg-type]


@pytest.fixture
def train() -> Callable[..., Training]:
    """train(module, tokens, spelling, rate): any module, plain SGD, the same rows at every step."""

    def begin(
        module: torch.nn.Module,
        tokens: torch.Tensor,
        spelling: str | None = None,
        rate: float = 0.0,
        pieces: int = 1,
    ) -> Training:
        micro = tuple(MicroBatch(rows, None, 1 / pieces) for rows in tokens.chunk(pieces))
        return Training(
            module,
            torch.optim.SGD(module.parameters(), lr=rate),
            Recipe("sgd"),
            SimpleNamespace(of=lambda step, accumulation=1: micro),  # type: ignore[arg-type]
            Rates(None, rate),
            0,
            policies=make_policies(spelling) if spelling else (),
        )

    return begin
