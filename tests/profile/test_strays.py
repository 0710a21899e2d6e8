"""Differences that are no products at a later checkpoint show it, and are replaced by exact products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hnf_offline.profile.derivatives import settle
from hnf_offline.profile.measure import measure
from hnf_offline.profile.suffix.calibration import Calibration, ProductChoice
from tests.profile.dense import judge, listing
from tests.profile.judged import case, settings

NAME = "GPT pre-norm, tied"


def longer(steps: Mapping[str, float], factor: float) -> dict[str, float]:
    return {path: factor * step for path, step in steps.items()}


def spoiled(found: Calibration, factor: float) -> Calibration:
    """As if the weights had been calibrated where the loss bends far less."""
    return replace(
        found,
        raw=replace(found.raw, steps=longer(found.raw.steps, factor)),
        scaled=replace(found.scaled, steps=longer(found.scaled.steps, factor)),
    )


def test_a_step_that_became_too_long_is_noticed() -> None:
    own = case(NAME, "trained")
    fair = replace(own.subject, products=ProductChoice())
    found = settle(fair, settings("standard"))
    assert len(found.raw.exact) < 5 and len(found.scaled.exact) < 5
    spoilt = replace(own.subject, products=ProductChoice(spoiled(found, 100)))
    rows = measure(spoilt, settings("standard"))
    method = {row.layer: row.batch for row in rows if row.quantity == "hessian.product_error"}
    assert sum(name == "exact" for name in method.values()) > 0.7 * len(method)
    assert all(
        row.value == 0 for row in rows if row.quantity == "hessian.product_error" and row.batch == "exact"
    )
    sure = [one for one in judge(rows, own.dense, own.name) if one.dominant and one.certified]
    assert len(sure) > 30 and all(one.error <= 0.01 for one in sure), listing(sure, 0.01)


def test_a_step_that_is_a_little_too_long_costs_no_accuracy() -> None:
    # Along the eigenvector itself such a step is off by per cents, and differences alone do not show it.
    own = case(NAME, "trained")
    found = settle(replace(own.subject, products=ProductChoice()), settings("standard"))
    subject = replace(own.subject, products=ProductChoice(spoiled(found, 6)))
    rows = measure(subject, settings("standard"))
    kept = [row for row in rows if row.quantity == "hessian.product_error" and row.batch != "exact"]
    assert len(kept) > 0.5 * len(own.subject.layers)
    sure = [one for one in judge(rows, own.dense, own.name) if one.dominant and one.certified]
    assert len(sure) > 30 and all(one.error <= 0.005 for one in sure), listing(sure, 0.005)


def test_at_certified_nothing_rests_on_differences() -> None:
    own = case(NAME, "trained")
    found = settle(replace(own.subject, products=ProductChoice()), settings("certified"))
    paths = {layer.path for layer in own.subject.layers}
    assert found.raw.exact == found.scaled.exact == paths
    # Nor where the same module was calibrated for another accuracy before.
    before = replace(own.subject, products=ProductChoice())
    assert not settle(before, settings("standard")).raw.exact
    assert settle(before, settings("certified")).scaled.exact == paths


def test_only_layers_that_are_measured_are_calibrated() -> None:
    own = case(NAME, "trained")
    found = settle(
        replace(own.subject, products=ProductChoice()), settings("standard", layers="transformer.h.1.*")
    )
    assert found.raw.errors and all(path.startswith("transformer.h.1.") for path in found.raw.errors)
    assert found.scaled.errors.keys() == found.raw.errors.keys()
