"""Train one run of the study, recorded as any user's run would be."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.study.case import Case
from benchmarks.study.tasks import source
from hnf_offline.record import Recorder
from hnf_offline.run.model.gpt import GPT
from hnf_offline.run.model.loss import evaluate


def trained(case: Case, cache: Path) -> Path:
    """Train a run, unless the cache holds it.

    Returns:
        Its folder.
    """
    folder = cache / "runs" / case.folder
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        train(case, folder)
    return folder


def train(case: Case, folder: Path) -> None:
    """Train a run into a new folder; the folder appears when the run is whole."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _record(case, unfinished)
    unfinished.rename(folder)


def _record(case: Case, folder: Path) -> None:
    update = case.update
    model = GPT(case.model).initialise(torch.Generator().manual_seed(case.seed))
    optimizer = _optimizer(case, model)
    batch, (tokens, labels) = source(case)
    described = {"kind": update.kind, "learning_rate": update.learning_rate, "warm_up": update.warm_up}
    training = {"family": case.family, "setting": case.setting, "seed": case.seed}
    if case.batch is None:
        training["batch"] = "full"  # so that any stretch of it can be taken again
    with Recorder(
        folder,
        every=lambda step: step >= case.first and (step - case.first) % case.every == 0,
        model={"model_type": "gpt", **asdict(case.model)},
        optimizer=described,
        training=training,
    ) as recorder:
        recorder.save_batches(tokens, labels)
        for step in range(1, case.steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = update.rate(step)
            loss = evaluate(model, *batch(step)).loss
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            )
            optimizer.step()
            # The saved rate is that of the next update.
            for group in optimizer.param_groups:
                group["lr"] = update.rate(step + 1)
            value = float(loss.detach())
            recorder.record(
                step, model, optimizer, loss=value, grad_norm=norm, learning_rate=update.rate(step)
            )
            if not math.isfinite(value):
                break


def _optimizer(case: Case, model: torch.nn.Module) -> torch.optim.Optimizer:
    update = case.update
    if update.kind == "SGD":
        return torch.optim.SGD(model.parameters(), lr=update.rate(1), momentum=update.momentum)
    return torch.optim.Adam(
        model.parameters(), lr=update.rate(1), betas=(update.momentum, update.beta2), eps=1e-8
    )
