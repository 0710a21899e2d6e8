"""Measure curvature in the middle of a replay: the same rows and the same code as at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from hnf_offline.profile.measure import measure_in_memory
from hnf_offline.profile.session import Session, full_precision
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.optimizer import state_of
from hnf_offline.rerun.training import Stability, Training, in_evaluation_mode
from hnf_offline.table import Row

RATIO, MASS, RATE = "hessian.stability_ratio", "hessian.unstable_mass", "optimizer.learning_rate"


def measured_rows(session: Session, settings: ProfileSettings, training: Training) -> list[Row]:
    """Profile the present weights of a replay with the rate of its next update.

    Nothing of the training changes: gradients of the last step are dropped, the generators and the module's mode
    come back as they were.

    Returns:
        Rows of the long table with source "zoom".
    """
    training.set_learning_rate(training.step + 1)
    training.optimizer.zero_grad(set_to_none=True)
    state = state_of(training.optimizer, training.module, training.recipe.kind)
    with in_evaluation_mode(training.module), full_precision():
        rows, _ = measure_in_memory(session, settings, training.step, state, training.batches.source.path)
    return [replace(row, source="zoom") for row in rows]


def stability_in(rows: list[Row]) -> Stability | None:
    """Pick S, its learning rate and the layers' shares out of measured rows.

    Returns:
        The stability; None where S was not measured.
    """
    whole = {row.quantity: row for row in rows if row.layer == ""}
    if RATIO not in whole:
        return None
    ratio = whole[RATIO]
    rate = whole[RATE].value if RATE in whole else float("nan")
    mass = {row.layer: row.value for row in rows if row.quantity == MASS}
    return Stability(ratio.value, rate, mass, low=ratio.low, high=ratio.high, certified=ratio.certified)


def stability_of(session: Session, settings: ProfileSettings) -> Callable[[Training], Stability | None]:
    """Make the function by which policies ask for S.

    Returns:
        A function of the training, at tier "stability".
    """
    whole = replace(settings, tier="stability", layers=None)
    every_layer = replace(settings, tier="curvature", layers=None)

    def layers(training: Training) -> Mapping[str, float]:
        rows = measured_rows(session, every_layer, training)
        return {row.layer: row.value for row in rows if row.quantity == RATIO and row.layer}

    def measure(training: Training) -> Stability | None:
        found = stability_in(measured_rows(session, whole, training))
        return None if found is None else replace(found, layers=partial(layers, training))

    return measure
