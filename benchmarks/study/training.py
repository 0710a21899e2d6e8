"""Train one run of the study, recorded as any user's run would be."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

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
    return kept(cache / "runs" / case.folder, lambda folder: record(case, folder))


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder, unless it is there; it appears when it is whole.

    Returns:
        The folder.
    """
    if not folder.exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in one module of a run.

    Attributes:
        factor: of the learning rate, from the path of a module that owns parameters and the step.
        after_update: changes the model after the update of a step, before it is saved.
    """

    factor: Callable[[str, int], float]
    after_update: Callable[[nn.Module, int], None]


def record(case: Case, folder: Path, fault: Fault | None = None) -> None:
    """Train a run into a folder, with a fault or without.

    Args:
        case: the run.
        folder: where it is recorded.
        fault: what goes wrong in it; each module then is a parameter group with its own rate.
    """
    update = case.update
    model = GPT(case.model).initialise(torch.Generator().manual_seed(case.seed))
    optimizer, modules = _optimizer(case, model, apart=fault is not None)
    batch, (tokens, labels) = source(case)
    described = {"kind": update.kind, "learning_rate": update.learning_rate, "warm_up": update.warm_up}
    training = {"family": case.family, "setting": case.setting, "seed": case.seed}
    if case.batch is None:
        training["batch"] = "full"  # so that any stretch of it can be taken again

    def set_rates(step: int) -> None:
        for group, module in zip(optimizer.param_groups, modules, strict=True):
            group["lr"] = update.rate(step) * (1.0 if fault is None else fault.factor(module, step))

    with Recorder(
        folder,
        every=lambda step: step >= case.first and (step - case.first) % case.every == 0,
        model={"model_type": "gpt", **asdict(case.model)},
        optimizer=described,
        training=training,
    ) as recorder:
        recorder.save_batches(tokens, labels)
        for step in range(1, case.steps + 1):
            set_rates(step)
            loss = evaluate(model, *batch(step)).loss
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            )
            optimizer.step()
            if fault is not None:
                fault.after_update(model, step)
            set_rates(step + 1)  # the saved rate is that of the next update
            value = float(loss.detach())
            recorder.record(
                step, model, optimizer, loss=value, grad_norm=norm, learning_rate=update.rate(step)
            )
            if not math.isfinite(value):
                break


def _optimizer(case: Case, model: nn.Module, *, apart: bool) -> tuple[torch.optim.Optimizer, list[str]]:
    """Make the optimizer: one group, or one a module that owns parameters.

    Returns:
        The optimizer, and the path of the module of each group ("" for the whole model).
    """
    update = case.update
    owners = {
        path: list(module.parameters(recurse=False))
        for path, module in model.named_modules()
        if apart and list(module.parameters(recurse=False))
    } or {"": list(model.parameters())}
    groups = [{"params": parameters} for parameters in owners.values()]
    if update.kind == "SGD":
        return torch.optim.SGD(groups, lr=update.rate(1), momentum=update.momentum), list(owners)
    betas = (update.momentum, update.beta2)
    return torch.optim.Adam(groups, lr=update.rate(1), betas=betas, eps=1e-8), list(owners)
