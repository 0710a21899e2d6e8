"""What page and terminal say alike of a retraining: the verdict, each arm in a few words, the facts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hnf_offline.findings import Spike
from hnf_offline.report import words
from hnf_offline.report.text import clean, loss, number, plural, signed
from hnf_offline.retraining import CLOSE, EXACT, Arm, LargestStable, Reproduction, Retraining, Twins

#: Verdict -> what stands in the chip, its mark, its mark in ASCII, its style.
VERDICTS = {
    EXACT: ("Exact", "●", "o", "same"),
    CLOSE: ("Close", "◐", "~", "unsure"),
}
#: How the optimizers that can be rebuilt are spelled.
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}

NOT_THIS_RUN = ("Not this run", "✕", "X", "differ")

_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm in words.

    Attributes:
        policy: its spelling, cleaned.
        spikes: "none", "151" or "3: 151, 160, 172".
        highest: highest loss and its step; the first step that is not finite where there is one.
        final: last loss and its step.
        change: last loss against that of "as was".
        certainty: whether that is more than chance, "" where it cannot be told.
        stability: highest S and its step.
        rate: range of the learning rate.
        seconds: wall time.
    """

    policy: str
    spikes: str
    highest: str
    final: str
    change: str
    certainty: str
    stability: str
    rate: str
    seconds: str


def verdict(reproduction: Reproduction) -> tuple[str, str, str, str]:
    """Look up the words of a verdict.

    Returns:
        Word, mark, mark in ASCII, style.
    """
    return VERDICTS.get(reproduction.word, NOT_THIS_RUN)


def because(reproduction: Reproduction) -> str:
    """Spell the verdict as a sentence; composed of the figures where the record brings no sentence.

    Returns:
        One sentence.
    """
    if reproduction.because:
        return words.sentence(reproduction.because)
    if reproduction.loss_difference is None:
        return "No loss could be compared with the log."
    said = "1 loss differs" if reproduction.losses == 1 else f"{reproduction.losses:,} losses differ"
    return f"{said} from the log by at most {number(reproduction.loss_difference, 2)} relative."


def policy_name(arm: Arm) -> str:
    """Spell a policy for a reader.

    Returns:
        The cleaned spelling.
    """
    return clean(arm.policy, longest=200)


def finite(values: tuple[float | None, ...]) -> list[float]:
    """Keep what is a number.

    Returns:
        The finite values, in order.
    """
    return [value for value in values if value is not None and math.isfinite(value)]


def highest(steps: tuple[int, ...], values: tuple[float | None, ...]) -> tuple[float, int] | None:
    """Find the highest value; one that is not finite is higher than any number.

    Returns:
        Value and step, None where there is no value.
    """
    known = [(value, step) for step, value in zip(steps, values, strict=False) if value is not None]
    broken = next(((value, step) for value, step in known if not math.isfinite(value)), None)
    return broken if broken is not None else max(known, key=lambda one: one[0], default=None)


def final(arm: Arm) -> tuple[float, int] | None:
    """Find the last loss.

    Returns:
        Value and step, None where no step has a loss.
    """
    known = [(value, step) for step, value in zip(arm.steps, arm.loss, strict=False) if value is not None]
    return known[-1] if known else None


def change(arm: Arm, as_was: Arm) -> float | None:
    """Take the final loss against that of the run as it was.

    Returns:
        The difference, NaN where either is not finite, None where either is missing.
    """
    one, other = final(arm), final(as_was)
    if one is None or other is None:
        return None
    return one[0] - other[0] if math.isfinite(one[0]) and math.isfinite(other[0]) else math.nan


def arm_row(arm: Arm, as_was: Arm) -> ArmRow:
    """Put one arm into words.

    Returns:
        The row of its table.
    """
    last = final(arm)
    difference = None if arm is as_was else change(arm, as_was)
    certainty = {True: "outside the twins' band", False: "within the twins' band", None: ""}[arm.clear]
    return ArmRow(
        policy=policy_name(arm),
        spikes=_spikes(arm.spikes),
        highest=_at(highest(arm.steps, arm.loss)),
        final=_at(last),
        change=signed(difference) if arm is not as_was else _NOTHING,
        certainty="" if arm is as_was else certainty,
        stability=_at(highest(arm.stability_steps, arm.stability_ratio), number),
        rate=_range(finite(arm.learning_rate)),
        seconds=f"{number(arm.seconds, 2)} s" if arm.seconds else _NOTHING,
    )


def _at(found: tuple[float, int] | None, spell: Any = loss) -> str:
    return _NOTHING if found is None else f"{spell(found[0])} at {found[1]:,}"


def _spikes(spikes: tuple[Spike, ...]) -> str:
    if not spikes:
        return "none"
    onsets = ", ".join(f"{spike.onset:,}" for spike in spikes[:4]) + (", …" if len(spikes) > 4 else "")
    return f"at {onsets}" if len(spikes) == 1 else f"{len(spikes)}: at {onsets}"


def _range(rates: list[float]) -> str:
    if not rates:
        return _NOTHING
    low, high = min(rates), max(rates)
    return rate(high) if low == high else f"{rate(low)}–{rate(high)}"


def band(twins: Twins) -> str:
    """Say what the twins are.

    Returns:
        "2 twins, weights changed by 1e-06".
    """
    if twins.perturbation is None:
        return f"{plural(twins.count, 'statistical twin')} on other batches"
    return f"{plural(twins.count, 'twin')}, weights changed by {twins.perturbation:.2g}"


def chance(twins: Twins) -> str:
    """Say what the twins came to.

    Returns:
        "final loss 0.32–0.376"; what the twins are where none has a loss.
    """
    if not twins.low or not twins.high:
        return band(twins)
    return f"final loss {loss(twins.low[-1])}–{loss(twins.high[-1])}"


def lyapunov(twins: Twins) -> str:
    """Tell how fast twins part.

    Returns:
        "0.12 a step [0.1–0.14]: a difference doubles in 5.8 steps"; "" where it cannot be told.
    """
    rate = twins.lyapunov_rate
    if rate is None:
        return ""
    said = f"{number(rate, 2)} a step"
    if twins.lyapunov_low is not None and twins.lyapunov_high is not None:
        said += f" [{number(twins.lyapunov_low, 2)}–{number(twins.lyapunov_high, 2)}]"
    if math.isfinite(rate) and rate > 0:
        return f"{said}: a difference doubles in {number(math.log(2) / rate, 2)} steps"
    return said if not math.isfinite(rate) else f"{said}: a difference does not grow"


def rate(value: float | None) -> str:
    """Spell a learning rate as it is typed.

    Returns:
        "0.0084", "1e-05", "-" where it is not known.
    """
    return number(value) if value is None or not math.isfinite(value) else f"{value:.3g}"


def stable_interval(found: LargestStable) -> str:
    """Say between which two rates the largest stable one lies.

    Returns:
        "between 0.0112 and 0.015", "above 0.02", "below 0.001" or "not found".
    """
    if found.stable is not None and found.unstable is not None:
        return f"between {rate(found.stable)} and {rate(found.unstable)}"
    if found.stable is not None:
        return f"above {rate(found.stable)}"
    return f"below {rate(found.unstable)}" if found.unstable is not None else "not found"


def from_curvature(found: LargestStable) -> str:
    """Spell lr/S with its interval.

    Returns:
        "0.0084 [0.0079–0.0091]", "not measured" where it was not.
    """
    if found.from_curvature is None:
        return "not measured"
    said = rate(found.from_curvature)
    if found.from_curvature_low is not None and found.from_curvature_high is not None:
        said += f" [{rate(found.from_curvature_low)}–{rate(found.from_curvature_high)}]"
    return said


def edge_crossing(arm: Arm) -> int | None:
    """Find the first step at which S was measured at 1 or above.

    Returns:
        The step, None where S stayed below 1.
    """
    measured = zip(arm.stability_steps, arm.stability_ratio, strict=False)
    return next((step for step, value in measured if value >= 1), None)


def subtitle(retraining: Retraining) -> str:
    """Describe what was retrained in one line.

    Returns:
        "steps 141–160 from checkpoint-140, GPT, AdamW".
    """
    parts = [f"steps {retraining.start + 1:,}–{retraining.stop:,} from checkpoint {retraining.start:,}"]
    kind = retraining.run.get("optimizer")
    named = {**retraining.run, "optimizer": OPTIMIZERS.get(str(kind), kind)}
    return ", ".join(part for part in (*parts, words.subtitle(named)) if part)


def facts(retraining: Retraining) -> list[dict[str, str]]:
    """Choose the four facts of the first screen.

    Returns:
        Label and value.
    """
    return _zoom_facts(retraining) if retraining.kind == "zoom" else _whatif_facts(retraining)


def _zoom_facts(retraining: Retraining) -> list[dict[str, str]]:
    found = retraining.reproduction
    told = [
        ("losses compared, largest difference", f"{found.losses:,}, {_relative(found.loss_difference)}"),
        ("largest difference of a weight", _weights(found)),
    ]
    if retraining.arms:
        arm = retraining.arms[0]
        peak = _at(highest(arm.stability_steps, arm.stability_ratio), number)
        told.append(("S, highest", peak if arm.stability_steps else "not measured"))
        told += [_warning(retraining, arm)] if arm.stability_steps else []
    return [{"label": label, "value": value} for label, value in told]


def _weights(found: Reproduction) -> str:
    checks = found.weights
    if not checks:
        return "no checkpoint on the way"
    if len(checks) > 1 and not any(check.difference for check in checks):
        return f"0 at all {len(checks)} checkpoints"
    largest = sorted(checks, key=lambda check: check.difference, reverse=True)[:3]
    shown = [check for check in checks if check in largest]
    return ", ".join(f"{number(check.difference, 2)} at {check.step:,}" for check in shown)


def _warning(retraining: Retraining, arm: Arm) -> tuple[str, str]:
    # How early it could have been known: by an alarm, or else by S above its edge.
    label, at = "first alarm", next((alarm.known_at for alarm in retraining.alarms), None)
    if at is None:
        label, at = "S above 1", edge_crossing(arm)
    if at is None:
        return "first alarm", "none, and S stays below 1"
    spike = next((spike.onset for spike in arm.spikes if spike.onset >= at), None)
    if spike is None:
        return label, f"at {at:,}"
    resolution = _resolution(arm, at)
    lead = plural(spike - at, "step") if spike - at >= resolution else f"< {resolution} steps"
    rough = "" if resolution <= 1 else f" (S every {resolution} steps)"
    return label, f"at {at:,}, {lead} before the spike{rough}"


def _resolution(arm: Arm, at: int) -> int:
    # Steps since S was looked at before: what a lead cannot be finer than.
    earlier = [step for step in arm.stability_steps if step < at]
    return at - earlier[-1] if earlier else 1


def _relative(difference: float | None) -> str:
    return "not compared" if difference is None else f"{number(difference, 2)} relative"


def _whatif_facts(retraining: Retraining) -> list[dict[str, str]]:
    told: list[tuple[str, str]] = []
    if retraining.arms:
        as_was, *others = retraining.arms
        top = _at(highest(as_was.steps, as_was.loss))
        told.append(("as was", f"{plural(len(as_was.spikes), 'spike')}, highest {top}"))
        calm = sum(not arm.spikes for arm in others)
        told.append(("policies without a spike", f"{calm} of {len(others)}" if others else "none was tried"))
    if retraining.largest_stable is not None:
        found = retraining.largest_stable
        told.append(("largest stable rate", f"{stable_interval(found)}, lr/S {rate(found.from_curvature)}"))
    twins = retraining.twins
    if twins is None:
        told.append(("chance alone", "no twins: not known"))
    else:
        told.append((f"chance alone, {plural(twins.count, 'twin')}", chance(twins)))
    return [{"label": label, "value": value} for label, value in told[:4]]
