"""Spectral densities of a recorded run: against its dense Hessian, from the cache, and where they do not fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from hnf_offline.errors import InputError
from hnf_offline.linalg.density import spectral_density
from hnf_offline.pipeline import measure
from hnf_offline.profile import ProfileSettings, plan
from hnf_offline.profile import densities as measuring
from hnf_offline.profile.cost import DENSITY_PRODUCTS, WHOLE_FORWARDS
from hnf_offline.profile.densities import (
    NODES,
    densities_in,
    density_rows,
    measure_densities,
    nodes_of,
    steps_in_memory,
)
from hnf_offline.profile.effort import FORWARDS
from hnf_offline.profile.session import open_session, optimizer_of
from hnf_offline.quantities.spectrum import negative_share, share_above_edge
from hnf_offline.run import open_run
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.model.build import load_weights_into
from tests.profile.dense import dense_hessian

LAST = ProfileSettings(first_step=24, dtype="float64", density=True)


class Matrix:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    @property
    def dimension(self) -> int:
        return len(self.matrix)

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        return self.matrix @ vector


def test_shares_are_those_of_the_dense_spectra(tiny: Path, tmp_path: Path) -> None:
    run = open_run(tiny)
    found = measure_densities(run, LAST, tmp_path)
    session = open_session(run, LAST)
    checkpoint = run.checkpoints[-1]
    load_weights_into(session.module, load_weights(checkpoint))
    state, _ = optimizer_of(session, run, checkpoint, load_optimizer(checkpoint))
    dense = dense_hessian(session.module, session.layers, session.batch.tokens, session.batch.labels, state)
    root = dense.metric.sqrt()
    spectra = {
        "hessian": torch.linalg.eigvalsh(dense.hessian),
        "preconditioned": torch.linalg.eigvalsh(root[:, None] * dense.hessian * root),
    }
    assert found.nodes["dimension"].unique().to_list() == [len(dense.hessian)]
    assert len(dense.hessian) > measuring.PROBES * measuring.STEPS  # or it would be formed, not estimated
    for name, spectrum in spectra.items():
        nodes = found.nodes.filter(pl.col("operator") == name)
        assert nodes["weight"].sum() == pytest.approx(1.0)
        assert nodes["node"].max() == pytest.approx(float(spectrum[-1]), rel=1e-6)
        assert nodes["node"].min() == pytest.approx(float(spectrum[0]), rel=1e-3)
        mean = float((nodes["node"] * nodes["weight"]).sum())
        assert mean == pytest.approx(float(spectrum.mean()), rel=0.3)
    rows = {row["quantity"]: row for row in found.rows.to_dicts()}
    raw, scaled = spectra["hessian"], spectra["preconditioned"]
    energy = float(-raw[raw < 0].sum() / raw.abs().sum())
    assert rows["hessian.negative_share"]["value"] == pytest.approx(energy, abs=0.05)
    above = float((scaled > 1).double().mean())
    edge = rows["hessian.share_above_edge"]
    assert abs(edge["value"] - above) <= 3 / len(raw) if above else edge["value"] == 0.0
    assert edge["layer"] == "" and edge["step"] == 24 and edge["batch"] == session.batch.name


def test_nodes_survive_being_written_down() -> None:
    matrix = torch.diag(torch.linspace(-1, 3, 200, dtype=torch.float64))
    density = spectral_density(Matrix(matrix), probes=3, steps=8)
    nodes = nodes_of(density, 12, "preconditioned", "rows")
    assert dict(nodes.schema) == dict(NODES)
    ((step, operator, batch, read),) = densities_in(nodes.sample(fraction=1.0, shuffle=True, seed=0))
    assert (step, operator, batch) == (12, "preconditioned", "rows")
    assert read.share_above(1.0).value == pytest.approx(density.share_above(1.0).value)
    assert read.share_above(1.0).error == pytest.approx(density.share_above(1.0).error)
    (row,) = density_rows(nodes)
    share = share_above_edge(density)
    assert row.quantity == "hessian.share_above_edge"
    assert (row.value, row.low, row.high) == pytest.approx((
        share.value,
        max(0.0, share.value - 2 * share.error),
        min(1.0, share.value + 2 * share.error),
    ))
    assert row.certified == density.resolved(1.0)


def test_an_operator_that_is_not_finite_leaves_a_finding() -> None:
    broken = spectral_density(Matrix(torch.full((300, 300), math.nan, dtype=torch.float64)))
    nodes = nodes_of(broken, 3, "hessian", "rows")
    assert math.isnan(nodes["node"][0])
    (row,) = density_rows(nodes)
    assert row.quantity == "hessian.negative_share"
    assert math.isnan(row.value) and not row.certified and row.low is None


def test_a_plan_counts_the_products(tiny: Path, tmp_path: Path) -> None:
    run = open_run(tiny)
    with_it, without = (
        plan(run, replace(LAST, tier="gradient", density=asked), tmp_path).forwards for asked in (True, False)
    )
    assert measuring.PROBES * measuring.STEPS == DENSITY_PRODUCTS
    products = 2 * DENSITY_PRODUCTS * WHOLE_FORWARDS
    assert with_it - without == pytest.approx(products + FORWARDS["graph"])


def test_formulas_of_the_shares() -> None:
    spectrum = torch.diag(torch.tensor([-1.0, -2.0, 0.5, 3.0, 1.5], dtype=torch.float64))
    density = spectral_density(Matrix(spectrum))
    assert negative_share(density).value == pytest.approx(3 / 8)
    assert share_above_edge(density).value == pytest.approx(2 / 5)


def test_a_rerun_measures_nothing_and_gives_the_same(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    settings = replace(LAST, first_step=20)
    first = measure_densities(open_run(tiny), settings, tmp_path)
    assert first.nodes["step"].unique().to_list() == [20, 24]
    assert_frame_equal(pl.read_parquet(tmp_path / "density.parquet"), first.nodes)
    monkeypatch.setattr(measuring, "spectral_density", None)  # calling it would fail
    again = measure_densities(open_run(tiny), replace(settings, tier="full", layers="*mlp*"), tmp_path)
    assert_frame_equal(again.nodes, first.nodes)
    assert_frame_equal(again.rows, first.rows)


def test_shares_join_the_profile_and_its_file(tiny: Path, tmp_path: Path) -> None:
    settings = replace(LAST, tier="gradient", dtype="float32")
    told: list[str] = []
    measured = measure(open_run(tiny), settings, tmp_path, on_progress=lambda one: told.append(one.work))
    names = set(measured.table["quantity"])
    assert {"hessian.negative_share", "hessian.share_above_edge", "gradient.norm"} <= names
    assert_frame_equal(pl.read_parquet(tmp_path / "profile.parquet"), measured.table)
    assert "density" in told
    without = measure(open_run(tiny), replace(settings, density=False), tmp_path)
    assert "hessian.negative_share" not in set(without.table["quantity"])


def test_without_optimizer_state_there_is_no_edge(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.rglob("optimizer*"):
        file.unlink()
    found = measure_densities(open_run(tiny), LAST, tmp_path)
    assert set(found.rows["quantity"]) == {"hessian.negative_share"}
    assert set(found.nodes["operator"]) == {"hessian"}


def test_a_damaged_checkpoint_is_passed_over(tiny: Path, tmp_path: Path, rewrite) -> None:
    file = tiny / "checkpoints" / "step-000020" / "model.safetensors"
    rewrite(file, lambda tensors: dict(list(tensors.items())[:1]))
    found = measure_densities(open_run(tiny), replace(LAST, first_step=20), tmp_path)
    assert found.nodes["step"].unique().to_list() == [24]
    ((path, reason, _),) = found.skipped
    assert path.name == "step-000020" and reason.startswith("no density: ")


def test_vectors_that_do_not_fit_are_fewer_or_refused(monkeypatch, tmp_path: Path) -> None:
    like = torch.zeros(())
    monkeypatch.setattr(measuring, "free_bytes", lambda _: 2 * 4 * 1000 * 25)
    assert steps_in_memory(1000, like, tmp_path) == 25
    assert steps_in_memory(10, like, tmp_path) == measuring.STEPS
    with pytest.raises(InputError, match="there is room for 2"):
        steps_in_memory(12_000, like, tmp_path)
