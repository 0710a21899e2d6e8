"""What is known of the optimizer where a checkpoint has no state of it: from run.toml, configuration and log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hnf_offline.run.optimizer import OptimizerState, ParameterState
from hnf_offline.run.records import Log, Run

#: torch's defaults for Adam and AdamW, taken where nobody says otherwise.
BETAS, EPS = (0.9, 0.999), 1e-8
#: Share of the second moment's memory that logged gradient norms must cover, and the most that one of them may
#: stand for beyond its own step.
COVERED, MOST = 0.9, 0.2


def assumed_state(run: Run, names: Sequence[str], step: int) -> tuple[OptimizerState | None, str]:
    """Put together what decides the stability limit of the next update at a checkpoint without optimizer state.

    SGD, heavy ball and Nesterov need rates alone, so their limit is exact. Adam's second moment is not known; the
    log's gradient norms give the sum of it over all parameters, on which an estimate can be built.

    Args:
        run: the run, for run.toml, its configuration and its log.
        names: the model's parameters; all are taken to be updated alike.
        step: the checkpoint's step.

    Returns:
        A state without moments and "", or None and the reason why there is none.
    """
    rate = run.optimizer.learning_rate
    if rate is None:
        rate = None if run.log is None else _last(run.log, "learning_rate", step + 1)
    if rate is None:
        return None, "neither the log nor run.toml says the learning rate"
    kind = run.optimizer.kind or _kind(run.configuration)
    if kind == "sgd":
        momentum = _number(run.optimizer.momentum, run.configuration, "momentum")
        if momentum is None:
            return None, "the momentum of SGD is not known (run.toml, [optimizer] momentum)"
        nesterov = run.optimizer.nesterov
        own = ParameterState(
            learning_rate=rate,
            momentum=momentum,
            dampening=_number(None, run.configuration, "dampening") or 0.0,
            nesterov=bool(run.configuration.get("optimizer.nesterov") if nesterov is None else nesterov),
            weight_decay=_number(run.optimizer.weight_decay, run.configuration, "weight_decay"),
        )
        return OptimizerState("sgd", dict.fromkeys(names, own), saved=False), ""
    if kind not in {"adam", "adamw"}:
        return None, "the stability limit of its optimizer is not known"
    beta1, beta2 = _betas(run)
    total = (
        None if run.log is None else _total_second_moment(run.log, step, beta2, run.optimizer.max_grad_norm)
    )
    if total is None:
        return None, "the log's gradient norms do not cover the memory of Adam's second moment"
    own = ParameterState(
        learning_rate=rate,
        beta1=beta1,
        beta2=beta2,
        eps=_number(run.optimizer.eps, run.configuration, "eps") or EPS,
        step=step,
    )
    return OptimizerState(kind, dict.fromkeys(names, own), saved=False, total_second_moment=total), ""


def _total_second_moment(log: Log, step: int, beta2: float, clipped_at: float | None) -> float | None:
    """Sum over all parameters of the bias-corrected second moment: the moving average of the squared gradient norm.

    Where the log leaves steps out, a norm stands for the steps since the one before it.

    Returns:
        The sum, None where the log's norms do not cover the memory.
    """
    if step < 1 or "grad_norm" not in log.rows.columns:
        return None
    rows = log.rows.select("step", "grad_norm").drop_nulls()
    known = [
        (int(at), float(norm)) for at, norm in rows.iter_rows() if 0 < at <= step and math.isfinite(norm)
    ]
    total = covered = 0.0
    memory = 1 - beta2**step
    before = known[0][0] - 1 if known else 0
    last = known[-1][0] if known else 0
    for at, norm in known:
        until = step if at == last and step - at <= at - before else at
        share = (beta2 ** (step - until) - beta2 ** (step - before)) / memory
        if share > MOST and until - before > 1:
            return None
        total += share * min(norm, clipped_at or math.inf) ** 2
        covered += share
        before = at
    return total / covered if covered >= COVERED and total > 0 else None


def _last(log: Log, column: str, step: int) -> float | None:
    """The last finite value that the log has up to a step.

    Returns:
        The value, None where there is none.
    """
    if column not in log.rows.columns:
        return None
    rows = log.rows.select("step", column).drop_nulls()
    found = [float(value) for at, value in rows.iter_rows() if at <= step and math.isfinite(value)]
    return found[-1] if found else None


def _kind(configuration: Mapping[str, Any]) -> str:
    """The optimizer that the configuration names; AdamW where it names none.

    Returns:
        "adam", "adamw", "sgd" or "other".
    """
    for key in ("optimizer.kind", "optimizer.name", "optimizer", "optim", "training.optim", "run.optim"):
        said = configuration.get(key)
        if isinstance(said, str) and said:
            plain = said.lower().rsplit(".", 1)[-1].split("_")[0]
            return plain if plain in {"adam", "adamw", "sgd"} else "other"
    # A rule with momentum and without betas is some kind of SGD or Muon, and which one nobody said.
    names = set(configuration)
    return (
        "other"
        if "optimizer.momentum" in names and not {"optimizer.betas", "optimizer.beta1"} & names
        else "adamw"
    )


def _betas(run: Run) -> tuple[float, float]:
    if run.optimizer.betas is not None:
        return run.optimizer.betas
    for key in ("optimizer.betas", "betas", "run.betas"):
        pair = run.configuration.get(key)
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(one, float) for one in pair):
            return float(pair[0]), float(pair[1])
    first = _number(None, run.configuration, "beta1")
    second = _number(None, run.configuration, "beta2")
    return (BETAS[0] if first is None else first, BETAS[1] if second is None else second)


def _number(setting: float | None, configuration: Mapping[str, Any], name: str) -> float | None:
    """A setting of run.toml or, without one, of the configuration.

    Returns:
        The number, None where neither has it.
    """
    if setting is not None:
        return setting
    for key in (f"optimizer.{name}", f"optimizer.adam_{name}", f"training.{name}", f"run.{name}", name):
        value = configuration.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None
