"""Faults put into one module of a running training, to see whether the module is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.study.case import Addition, Case, Text, Update
from benchmarks.study.training import Fault, kept, record
from hnf_offline.run.model.gpt import GPTConfig

#: Step at which a fault begins, steps before and after that have checkpoints, and the gap between them.
AT, BEFORE, AFTER, EVERY = 300, 40, 80, 4
#: What each fault does: the module's learning rate rises to 40 times over 80 steps, or to 15 times at once; its weights
#: are multiplied by 4, set to zero and kept there, or one of them becomes NaN.
RAMPED, RAMP_STEPS, JUMPED, SCALED = 40.0, 80, 15.0, 4.0
KINDS = ("ramp", "jump", "scale", "dead", "nan")
MODULES = (
    "transformer.h.0.attn.c_attn",
    "transformer.h.0.mlp.c_fc",
    "transformer.h.1.attn.c_proj",
    "transformer.h.1.mlp.c_proj",
    "transformer.wte",
    "lm_head",
)
#: Two architectures: no norms and full batch, norms before the sublayers and new text at every step.
ARCHITECTURES: Mapping[str, tuple[GPTConfig, Addition | Text, Update, int | None]] = {
    "addition": (
        GPTConfig(18, 3, 2, 4, 32, norm="none", bias=False, tied=False),
        Addition(17, 1.0),
        Update("Adam", 5e-4),
        None,
    ),
    "text": (
        GPTConfig(32, 24, 2, 4, 32, norm="pre", bias=False, tied=False),
        Text(vocabulary=32, length=24),
        Update("Adam", 2e-3),
        12,
    ),
}


@dataclass(frozen=True, slots=True)
class Injected:
    """A run with a fault in one module.

    Attributes:
        case: the run.
        kind: one of `KINDS`.
        module: path of the module.
    """

    case: Case
    kind: str
    module: str

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.kind}-{self.case.setting}-{self.module}-seed{self.case.seed}"

    @property
    def folder(self) -> str:
        """Name under which it is kept: a fault that is declared otherwise is another run."""
        fixed = [asdict(self), AT, RAMPED, RAMP_STEPS, JUMPED, SCALED]
        return f"{self.name}-{hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]}"


def runs() -> list[Injected]:
    """List the runs: every kind of fault in three modules of each architecture, the modules taking turns.

    Returns:
        Thirty runs, each with a seed of its own.
    """
    found = []
    for setting, (model, task, update, batch) in ARCHITECTURES.items():
        for number, kind in enumerate(KINDS):
            for turn in range(3):
                seed = 300 + len(found)
                case = Case(
                    "L",
                    setting,
                    seed,
                    model,
                    task,
                    update,
                    steps=AT + AFTER,
                    batch=batch,
                    first=AT - BEFORE,
                    every=EVERY,
                )
                found.append(Injected(case, kind, MODULES[(number + 2 * turn) % len(MODULES)]))
    return found


def fault(injected: Injected) -> Fault:
    """Make the fault.

    Returns:
        What the training asks for its rates and hands its model to.
    """

    def factor(path: str, step: int) -> float:
        if path != injected.module or step < AT:
            return 1.0
        if injected.kind == "ramp":
            return float(RAMPED ** min(1.0, (step - AT) / RAMP_STEPS))
        return JUMPED if injected.kind == "jump" else 1.0

    @torch.no_grad()
    def after_update(model: nn.Module, step: int) -> None:
        weight = model.get_submodule(injected.module).get_parameter("weight")
        if injected.kind == "dead" and step >= AT:
            weight.zero_()
        elif step == AT and injected.kind == "scale":
            weight.mul_(SCALED)
        elif step == AT and injected.kind == "nan":
            weight.view(-1)[0] = torch.nan

    return Fault(factor, after_update)


def trained_with_fault(injected: Injected, cache: Path) -> Path:
    """Train a run with its fault, unless the cache holds it.

    Returns:
        Its folder.
    """
    return kept(
        cache / "injected" / injected.folder, lambda folder: record(injected.case, folder, fault(injected))
    )
