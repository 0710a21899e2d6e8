"""Retrainings made by hand: every number in them is planted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from hnf_offline.findings import Spike
from hnf_offline.retraining import Arm, LargestStable, Reproduction, Retraining, Twins, WeightCheck

RUN = {"name": "hf_llama", "path": "data/hf_llama", "model": "LlamaForCausalLM", "optimizer": "AdamW"}

EXACT = Reproduction(
    word="exact",
    because="20 losses equal the log to 6e-7 relative, weights at 150 and 160 equal the checkpoints "
    "(largest difference 0 and 1e-7)",
    losses=20,
    loss_difference=6.1e-7,
    grad_norm_difference=4.3e-6,
    weights=(WeightCheck(150, 0.0, 0.021, 0.0), WeightCheck(160, 1.1e-7, 0.347, 2e-7)),
    assumed=("AdamW from the saved state", "learning rate of the log, one step late"),
    found=("clipping at 1.0 (none, 0.5 and 1.0 were tried)",),
)


def spike(onset: int, peak: int, loss_peak: float, **changed: Any) -> Spike:
    """A spike that never came back unless told otherwise."""
    planted: dict[str, Any] = {
        "id": 1, "onset": onset, "peak": peak, "end": None, "loss_before": 2.28, "loss_peak": loss_peak,
        "height": loss_peak - 2.28, "z": 31.4, "kind": "spike", "recovered": False, "recovery_steps": None,
        "offset": 0.84, "at_resume": False,
    }  # fmt: skip
    return Spike(**planted | changed)


def losses(start: int, stop: int, peak: tuple[int, float] | None, level: float) -> tuple[float, ...]:
    """A calm loss with one spike that decays to a level."""
    noise = np.random.default_rng(start).standard_normal(stop - start) * 0.01
    values = []
    for step in range(start + 1, stop + 1):
        value = 2.28 - 0.003 * (step - start)
        if peak is not None and step >= peak[0]:
            value = level + (peak[1] - level) * math.exp(-(step - peak[0]) / 6)
        elif peak is not None and step == peak[0] - 1:
            value = (2.28 + peak[1]) / 3
        values.append(float(value * (1 + noise[step - start - 1])))
    if peak is not None:
        values[peak[0] - start - 1] = peak[1]
    return tuple(values)


def arm(
    policy: str, start: int, stop: int, *, peak: tuple[int, float] | None = None, level: float = 2.16,
    every: int = 4, top: float = 0.8, **changed: Any,
) -> Arm:  # fmt: skip
    """An arm whose loss has its peak where told, and S that climbs to `top`."""
    steps = tuple(range(start + 1, stop + 1))
    measured = tuple(range(start + 1, stop + 1, every))
    climb = tuple(float(top * (0.1 + 0.9 * min(1.0, (step - start) / 12))) for step in measured)
    planted = {
        "policy": policy,
        "steps": steps,
        "loss": losses(start, stop, peak, level),
        "grad_norm": tuple(0.4 + 0.01 * (step % 7) for step in steps),
        "learning_rate": tuple(0.001 if step < start + 10 else 0.01 for step in steps),
        "stability_steps": measured,
        "stability_ratio": climb,
        "spikes": () if peak is None else (spike(peak[0] - 1, peak[0], peak[1]),),
        "seconds": 12.4,
    }
    return Arm(**planted | changed)


def as_was(start: int = 140, stop: int = 180, **changed: Any) -> Arm:
    """The run itself: it peaks at 6.28 in step 152."""
    return arm("as was", start, stop, peak=(152, 6.28), level=3.12, top=14.2, **changed)


def log_of(one: Arm, start: int = 1) -> pl.DataFrame:
    """The log whose losses are those of an arm, after calm steps."""
    before = range(start, one.steps[0])
    return pl.DataFrame({
        "step": [*before, *one.steps],
        "loss": [*(2.3 + 0.005 * (step % 5) for step in before), *one.loss],
    })


def zoomed(**changed: Any) -> Retraining:
    """A zoom of 20 steps that is exact."""
    run = as_was(140, 160, every=1)
    return replace(
        Retraining("zoom", RUN, 140, 160, EXACT, (run,), notes=("dropout is 0 in this model",),
                   made={"device": "cpu", "seconds": 12.0}),
        **changed,
    )  # fmt: skip


def whatif(**changed: Any) -> Retraining:
    """Three policies beside the run as it was, with twins and the search for the largest stable rate."""
    run = as_was()
    noise = 0.02 * np.linspace(0.0, 1.0, 40)
    twins = Twins(
        "butterfly", 2, 1e-6, run.steps, tuple(float(x) for x in np.array(run.loss, float) * (1 - noise)),
        tuple(float(x) for x in np.array(run.loss, float) * (1 + noise)), 0.123, 0.101, 0.144,
        "a change within the band is chance",
    )  # fmt: skip
    found = LargestStable(
        140, 40, 0.001, 0.0112, 0.0139, 0.0084, 0.0079, 0.0091,
        ((0.0112, False, 2.31), (0.0139, True, 2.69), (0.02, True, math.nan)),
        "the largest stable rate by replay is 1.3 to 1.7 times lr/S",
    )  # fmt: skip
    arms = (
        run,
        arm("lr-cap=0.0084", 140, 180, formula="lr_t = min(lr_t, 0.0084)", cost="nothing", clear=True,
            outcome="no spike, loss 2.16 at step 180 instead of 3.12", reference="lr/S of this tool"),
        arm("lr-cap=0.015", 140, 180, peak=(153, 2.69), level=2.31, top=1.8, clear=True,
            formula="lr_t = min(lr_t, 0.015)", cost="nothing", outcome="a smaller spike, 2.69 at 153"),
        arm("clip=1.0", 140, 180, peak=(152, 6.11), level=3.08, top=13.0, clear=False,
            formula="g <- g min(1, 1/|g|)", cost="nothing", outcome="does not help"),
    )  # fmt: skip
    made = {"device": "cpu", "seconds": 61.3, "versions": {"torch": "2.13"}}
    return replace(
        Retraining(
            "whatif",
            RUN,
            140,
            180,
            EXACT,
            arms,
            twins,
            found,
            ("batches 141-180 are those of the run",),
            made,
        ),
        **changed,
    )


def many(count: int = 12) -> Retraining:
    """Many arms, two of which end in NaN and infinity."""
    run = as_was()
    arms: list[Arm] = [run]
    for place in range(1, count + 1):
        peak = None if place % 3 else (152 + place, 2.5 + 0.3 * place)
        arms.append(arm(f"lr-scale={0.05 * place:.2f}:{10 * place}", 140, 180, peak=peak, level=2.1 + 0.06 * place,
                        top=0.4 * place, clear=bool(place % 2), cost="nothing"))  # fmt: skip
    arms[3] = dying(arms[3], math.nan, 160)
    arms[7] = dying(arms[7], math.inf, 170)
    return whatif(arms=tuple(arms))


def dying(one: Arm, value: float, step: int) -> Arm:
    """The arm with a loss that is no number from a step on."""
    loss = tuple(value if at >= step else known for at, known in zip(one.steps, one.loss, strict=True))
    return replace(one, loss=loss, spikes=(spike(step, step, value, kind="nonfinite"),))
