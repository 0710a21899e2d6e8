"""The catalogue is complete, refuses what is not, and costs no torch."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

from hnf_offline.profile.settings import TIERS
from hnf_offline.quantities import catalogue, computable
from hnf_offline.quantities.registry import quantity


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_entry_says_what_it_is(name: str) -> None:
    entry = catalogue()[name]
    assert entry.name == name
    assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", name)
    assert entry.tier in {*TIERS, "log"}
    for text in (entry.unit, entry.formula, entry.reference, entry.layers, entry.reading, entry.cannot):
        assert text.strip() == text != ""
    assert entry.description.endswith(".") and inspect.getdoc(entry.function)
    assert list(entry.bands) == sorted(set(entry.bands))
    if entry.worst_head is not None:
        companion = catalogue()[f"{name}_head"]
        assert companion.unit == "head index" and name in companion.formula


def test_every_promised_quantity_is_there() -> None:
    promised = [
        "hessian.stability_ratio",
        "hessian.lambda_max",
        "hessian.lambda_min",
        "hessian.gradient_direction",
        "hessian.update_direction",
        "hessian.unstable_mass",
        "optimizer.learning_rate",
        "optimizer.headroom",
        "optimizer.largest_stable_lr",
        "gradient.norm",
        "adam.lag_rms",
        "attention.logit_max",
        "attention.logit_max_head",
        "attention.entropy",
        "attention.entropy_head",
        "attention.saturation",
        "norm.inverse_sigma",
        "residual.rms",
        "logits.log_z",
        "logits.p_min",
        "proxy.softmax_log10",
        "proxy.norm_log10",
        "proxy.cross_entropy_log10",
        "replay.loss",
        "weight.nonfinite",
    ]
    assert set(promised) <= set(catalogue())


def test_no_two_quantities_are_the_same_formula() -> None:
    of = [entry.formula for entry in catalogue().values()]
    assert len(set(of)) == len(of)


def test_a_name_is_registered_once() -> None:
    entry = catalogue()["gradient.norm"]
    with pytest.raises(ValueError, match=r"gradient\.norm: registered twice"):
        quantity(
            "gradient.norm",
            unit="1",
            formula="f",
            reference="r",
            tier="forward",
            layers="all",
            reading="so",
            cannot="no",
        )(lambda gradient: gradient)
    assert catalogue()["gradient.norm"] is entry


@pytest.mark.parametrize("blank", ["unit", "formula", "reference", "reading", "cannot"])
def test_an_incomplete_entry_is_refused_at_import(blank: str) -> None:
    texts = {"unit": "1", "formula": "f", "reference": "r", "reading": "so", "cannot": "no"}
    with pytest.raises(ValueError, match=rf"made\.up: no .*{blank}"):
        quantity("made.up", tier="forward", layers="all", **{**texts, blank: ""})(lambda gradient: gradient)
    assert "made.up" not in catalogue()


def test_nobody_can_write_into_the_catalogue() -> None:
    with pytest.raises(TypeError):
        catalogue()["gradient.norm"] = None  # type: ignore[index]


def test_only_what_can_be_computed_from_what_is_there_is_computed() -> None:
    names = {entry.name for entry in computable(frozenset({"log_partition"}), "forward")}
    assert names == {"logits.log_z"}
    names = {
        entry.name for entry in computable(frozenset({"log_partition", "target_log_probability"}), "forward")
    }
    assert names == {"logits.log_z", "logits.p_min", "proxy.cross_entropy_log10"}
    assert computable(frozenset({"log_partition", "target_log_probability"}), "curvature") == ()
    assert computable(frozenset(), "forward") == ()


def test_reading_the_catalogue_imports_no_torch() -> None:
    code = (
        "import sys, hnf_offline.quantities as quantities; names = list(quantities.catalogue());"
        "assert len(names) > 20; assert 'torch' not in sys.modules, 'torch'; print(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(catalogue())
