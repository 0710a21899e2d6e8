"""A comparison in one verdict and four facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.diff.separation import hold, in_order
from hnf_offline.diff.words import all_of, listed, place, value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hnf_offline.comparison import Difference, Separation, WeightDistance
    from hnf_offline.diff.series import Series

#: Names under which a learning rate is logged or measured.
RATES = ("learning_rate", "optimizer.learning_rate")


def tell(
    configuration: tuple[Difference, ...],
    separations: list[Separation],
    distances: tuple[WeightDistance, ...],
    log_series: list[tuple[str, Series]],
    aligned: Mapping[str, Any],
    incomparable: tuple[str, ...],
    gap: int | None,
) -> tuple[dict[str, str], tuple[dict[str, str], ...]]:
    """Put the comparison into one verdict and four facts.

    Returns:
        The verdict and the facts.
    """
    apart = [one for one in separations if one.step is not None]
    loss = next((one for one in separations if one.quantity == "loss"), None)
    first_layer, at_once = _first_layer(apart)
    if not separations and not distances:
        word = "Cannot say"
        sentences = ["A and B have no step in common, so nothing could be compared."]
    else:
        word = "Differ" if apart or configuration else "Same"
        sentences = [_configuration_sentence(configuration), _loss_sentence(loss, log_series, aligned)]
        if first_layer is not None:
            sentences.append(_layer_sentence(first_layer, at_once, aligned, gap))
        elif any(one.layer for one in separations):
            sentences.append("No layer parts durably in any measured quantity.")
        if distances:
            sentences.append(_start_sentence(distances))
    caveat = (
        "Apart means beyond four times the two runs' own step-to-step noise, several points in a row; "
        "one run of each is no estimate of the noise between runs."
    )
    if incomparable:
        count = len(incomparable)
        caveat += f" {count} thing{'' if count == 1 else 's'} could not be compared; see the list."
    rates = [one for one in apart if one.quantity in RATES]
    if rates:
        caveat += (
            " S contains the learning rate: where that differs, S differs by the same factor from the start."
        )
    # The learning rate is a setting: where it parts is no symptom.
    first = min((one for one in apart if one not in rates), key=in_order, default=None)
    facts = (
        {"label": "First durable separation", "value": "none" if first is None else f"step {first.step}"},
        {"label": "In", "value": "nothing" if first is None else place(first)},
        {"label": "Final loss, A against B", "value": _final_loss(log_series, loss)},
        {
            "label": "Comparable",
            "value": "fully"
            if not incomparable
            else f"not in {len(incomparable)} respect{'' if len(incomparable) == 1 else 's'}",
        },
    )
    return {"word": word, "sentence": " ".join(sentences), "caveat": caveat}, facts


def _first_layer(apart: list[Separation]) -> tuple[Separation | None, int]:
    """Pick the layer that parts first; of several at one step, the one furthest apart for its noise.

    Returns:
        Its separation, and how many layers part at that same step.
    """
    layers = [one for one in apart if one.layer]
    if not layers:
        return None, 0
    step = min(one.step for one in layers if one.step is not None)
    together = [one for one in layers if one.step == step]
    return max(together, key=_strength), len({one.layer for one in together})


def _strength(separation: Separation) -> float:
    a, b = separation.a, separation.b
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    gap = abs(math.log(a / b)) if separation.scale == "log ratio" else abs(a - b)
    return gap / separation.threshold


def _configuration_sentence(configuration: tuple[Difference, ...]) -> str:
    if not configuration:
        return "A and B have the same configuration as far as it was found."
    named = [f"{one.key} ({value(one.a)} against {value(one.b)})" for one in configuration[:3]]
    more = len(configuration) - len(named)
    return f"A and B differ in {all_of(named)}{f' and {more} more keys' if more else ''}."


def _loss_sentence(
    loss: Separation | None, log_series: list[tuple[str, Series]], aligned: Mapping[str, Any]
) -> str:
    if loss is None:
        return "Their losses were not compared."
    series = next(series for name, series in log_series if name == "loss")
    difference = aligned["first_loss_difference"]
    together = "equal to the last digit" if difference is None else f"equal before step {difference}"
    if difference == int(series.steps[0]):
        together = "different from the first common step"
    if loss.step is None:
        return (
            f"Their losses do not part durably on {aligned['log_steps']} common steps ({together})"
            f"{_not_finite(series)}."
        )
    size = _gap(loss)
    still = "for good" if loss.until is None else f"until step {loss.until}"
    return f"Their losses ({together}) part at step {loss.step}, {still} ({size}){_not_finite(series)}."


def _not_finite(series: Series) -> str:
    found = []
    for label, values in (("A", series.a), ("B", series.b)):
        bad = ~np.isfinite(values)
        if bad.any():
            first = int(series.steps[bad][0])
            lasting = bool(bad[int(np.argmax(bad)) :].all())
            found.append(f"{label} is not finite {'from' if lasting else 'at'} step {first}")
    return "; " + ", ".join(found) if found else ""


def _layer_sentence(first: Separation, at_once: int, aligned: Mapping[str, Any], gap: int | None) -> str:
    profiled = aligned["profile_steps"]
    resolution = f" (checkpoints {gap} steps apart)" if gap else ""
    if profiled and first.step == profiled[0]:
        layers = "One layer is" if at_once == 1 else f"{at_once} layers are"
        return (
            f"{layers} apart at the first common checkpoint already (step {first.step}), "
            f"furthest {place(first)}, {_gap(first)}."
        )
    also = "" if at_once == 1 else f", one of {at_once} layers at that checkpoint"
    return (
        f"First to part among the layers is {place(first)} at step {first.step}{resolution}, "
        f"{_gap(first)}{also}."
    )


def _start_sentence(distances: tuple[WeightDistance, ...]) -> str:
    step = distances[0].step
    at_start = [one for one in distances if one.step == step]
    if all(one.distance == 0 for one in at_start):
        return f"Their weights are equal at step {step}."
    broken = [one.layer for one in at_start if not math.isfinite(one.distance)]
    if broken:
        return f"At step {step} weights are not finite in {listed(broken)}."
    furthest = max(at_start, key=lambda one: one.relative)
    return (
        f"At step {step} their weights differ most in {furthest.layer} ({furthest.relative:.2g} of its norm)."
    )


def _final_loss(log_series: list[tuple[str, Series]], loss: Separation | None) -> str:
    for name, series in log_series:
        if name == "loss" and loss is not None:
            last = slice(-hold(len(series.steps)), None)
            a, b = (_finite_median(values[last]) for values in (series.a, series.b))
            band = f"± {loss.threshold:.2g} in {loss.scale}"
            return f"{a} against {b} (noise band {band})"
    return "not known"


def _finite_median(values: NDArray[np.float64]) -> str:
    return f"{float(np.median(values)):.4g}" if np.isfinite(values).all() else "not finite"


def _gap(separation: Separation) -> str:
    shown = f"{value(separation.a)} against {value(separation.b)}"
    return shown if separation.certified else f"{shown}, not certified"
