"""A tiny recorded run that every test of retraining starts from, and ways to plant a lie in its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.session import Session, open_session
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.record import Recorder
from hnf_offline.rerun.data import Rates
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start, open_start
from hnf_offline.rerun.training import Training
from hnf_offline.rerun.zoom import Zoomed, zoom
from hnf_offline.retraining import Reproduction
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate

MODEL = GPTConfig(vocab_size=17, block_size=12, n_layer=2, n_head=2, n_embd=16, norm="pre")
STEPS, ROWS, EVERY = 40, 6, 10

Lines = list[dict[str, float]]


def record_run(
    directory: Path,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    rate: Callable[[int], float] = lambda step: 3e-3,
    clip: float | None = None,
    steps: int = STEPS,
    seed: int = 0,
    model: GPTConfig = MODEL,
    module: torch.nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    ratios: Callable[[str], float] | None = None,
    accumulation: int = 1,
    labels: Callable[[Tensor], Tensor] | None = None,
    autocast: torch.dtype | None = None,
    random_states: bool = False,
    training: Mapping[str, object] | None = None,
    **settings: object,
) -> Path:
    """Train the tiny model for some steps and record everything a replay needs.

    Args:
        directory: where the run is written.
        optimizer: torch's class.
        rate: learning rate of a step.
        clip: bound on the gradient norm.
        steps: updates.
        seed: of weights and rows.
        model: the built-in decoder's size.
        module: another module; the run then needs a run.toml that names its factory.
        dtype: of the weights.
        ratios: parameter name -> its learning rate over the logged one; parameters of one ratio are one group.
        accumulation: micro-batches whose means count alike.
        labels: makes labels of the rows.
        autocast: precision of the forward pass.
        random_states: keep the generator's state before each forward pass.
        training: what config.json says of the training.
        **settings: of the optimizer.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.vocab_size, (steps * ROWS, model.block_size), generator=generator)
    tokens[:, 1::2] = tokens[:, ::2]  # something to learn
    wanted = None if labels is None else labels(tokens)
    if module is None:
        module = GPT(model).initialise(torch.Generator().manual_seed(seed))
    module = module.to(dtype).train()
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        groups.setdefault(1.0 if ratios is None else ratios(name), []).append(parameter)
    inner = optimizer([{"params": some, "lr": rate(1) * ratio} for ratio, some in groups.items()], **settings)
    states: list[Tensor] = []

    def set_rate(value: float) -> None:
        for ratio, group in zip(groups, inner.param_groups, strict=True):
            group["lr"] = value * ratio

    about = {"model_type": "gpt", **asdict(model)}
    with Recorder(directory, every=EVERY, model=about, training=training) as recorder:
        recorder.save_batches(tokens, wanted, steps=torch.arange(1, steps + 1).repeat_interleave(ROWS))
        for step in range(1, steps + 1):
            rows = slice((step - 1) * ROWS, step * ROWS)
            pieces = tokens[rows].chunk(accumulation)
            their = [None] * accumulation if wanted is None else wanted[rows].chunk(accumulation)
            set_rate(rate(step))
            used = inner.param_groups[0]["lr"]
            inner.zero_grad()
            states.append(torch.get_rng_state())
            losses = []
            for some, labelled in zip(pieces, their, strict=True):
                with nullcontext() if autocast is None else torch.autocast("cpu", autocast):
                    losses.append(evaluate(module, some, labelled).loss / accumulation)
                losses[-1].backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            inner.step()
            set_rate(rate(step + 1))
            loss = torch.stack(losses).sum()
            recorder.record(step, module, inner, loss=loss, grad_norm=norm, learning_rate=used)
    if random_states:
        rows_of = {"steps": torch.arange(1, steps + 1), "cpu": torch.stack(states)}
        save_file(rows_of, directory / "random_states.safetensors")
    return directory


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_run(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Record a run of this test's own: record(clip=0.5)."""
    number = count(1)
    return lambda **settings: record_run(tmp_path / f"run-{next(number)}", **settings)


@pytest.fixture
def tried(tmp_path: Path) -> Callable[..., Zoomed]:
    """Zoom as a user does: tried(path, 10, 30)."""
    number = count(1)

    def call(path: Path, start: int = 10, stop: int = 30, *, every: int = 0, **options: Any) -> Zoomed:
        dtype = options.pop("dtype", "float32")
        settings = ProfileSettings(tier="stability", device="cpu", dtype=dtype, rows=12)
        out = options.pop("out", tmp_path / f"out-{next(number)}")
        return zoom(
            open_run(path), start=start, stop=stop, settings=settings, out=out, every=every, **options
        )

    return call


@pytest.fixture
def verdict(tried: Callable[..., Zoomed]) -> Callable[..., Reproduction]:
    """Whether retraining gives the run again: verdict(path, 10, 30)."""
    return lambda *arguments, **options: tried(*arguments, **options).retraining.reproduction


def _rewrite_log(path: Path, change: Callable[[Lines], Lines]) -> None:
    file = path / "log.jsonl"
    lines = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _shift_column(path: Path, column: str, by: int) -> None:
    """Write the value of step s at step s + by."""

    def change(lines: Lines) -> Lines:
        values = {int(line["step"]) + by: line.pop(column) for line in lines}
        return [line | ({column: values[line["step"]]} if line["step"] in values else {}) for line in lines]

    _rewrite_log(path, change)


def _rewrite_batches(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = path / "batches.safetensors"
    save_file(change(load_file(file)), file)


def _shift_batches(path: Path, by: int) -> None:
    _rewrite_batches(path, lambda rows: rows | {"steps": rows["steps"] + by})


def _shift_checkpoints(path: Path, by: int) -> None:
    folder = path / "checkpoints"
    for old in sorted(folder.iterdir(), reverse=by > 0):
        old.rename(folder / f"step-{int(old.name[5:]) + by:06d}")


def _rewrite_optimizers(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what every optimizer file says of itself."""
    for file in path.glob("checkpoints/*/optimizer.safetensors"):
        with safe_open(file, framework="pt") as archive:
            said = json.loads(archive.metadata()["optimizer"])
        change(said)
        save_file(load_file(file), file, metadata={"optimizer": json.dumps(said)})


def _drop_state(path: Path, *steps: int) -> None:
    for step in steps:
        (path / "checkpoints" / f"step-{step:06d}" / "optimizer.safetensors").unlink()


def _content(path: Path) -> dict[str, str]:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return {str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


@pytest.fixture
def plant() -> SimpleNamespace:
    """Ways to rewrite the files of a recorded run."""
    return SimpleNamespace(
        log=_rewrite_log,
        shift_column=_shift_column,
        batches=_rewrite_batches,
        shift_batches=_shift_batches,
        shift_checkpoints=_shift_checkpoints,
        optimizers=_rewrite_optimizers,
        drop_state=_drop_state,
        content=_content,
    )


_DROPOUT = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.embed, self.drop = nn.Embedding(20, 16), nn.Dropout(p)  # rows 17 to 19 are never used
        self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 17)

    def forward(self, input_ids):
        return self.head(torch.tanh(self.body(self.drop(self.embed(input_ids)))))


def make():
    torch.manual_seed(0)
    return Small(0.1)


def without():
    torch.manual_seed(0)
    return Small(0.0)
"""


@pytest.fixture
def record_dropout(
    tmp_path: Path, record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Path]]:
    """Record a run of a module of the user's own, with dropout; the user names its run.toml when it is opened."""
    open_module = import_module("hnf_offline.run.open")
    read = open_module.read_manifest
    monkeypatch.setattr(open_module, "read_manifest", lambda run, path: replace(read(run, path), named=True))
    (tmp_path / "planted_dropout.py").write_text(_DROPOUT)
    monkeypatch.syspath_prepend(tmp_path)
    import planted_dropout  # type: ignore[import-not-found]

    def call(function: str = "make", **settings: Any) -> Path:
        path = record(module=getattr(planted_dropout, function)(), **settings)
        (path / "run.toml").write_text(f'[model]\nkind = "factory"\nfactory = "planted_dropout:{function}"\n')
        return path

    yield call
    monkeypatch.delitem(__import__("sys").modules, "planted_dropout")


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
