"""Profiles that alarms are made from."""

from __future__ import annotations

import polars as pl

from hnf_offline.table import Row, table

EMPTY_LOG = pl.DataFrame(schema={"step": pl.Int64, "loss": pl.Float64})


def profile(values, quantity="hessian.stability_ratio", layer="", gap=8, first=8, rate=1e-2):
    rows = []
    for number, value in enumerate(values):
        step = first + gap * number
        rows.append(Row(step, layer, "model", -1, quantity, float(value)))
        if quantity == "hessian.stability_ratio":
            rows.append(Row(step, layer, "model", -1, "optimizer.learning_rate", rate))
    return table(rows)


def said(alarms, *severities):
    return [(a.rule, a.known_at) for a in alarms if not severities or a.severity in severities]
