"""A fault in one module is where it was put, and a quantity that names it is told from one that does not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.study.case import Update
from benchmarks.study.injection import AT, KINDS, RAMPED, Injected, fault, runs, trained_with_fault
from benchmarks.study.localisation import Named, answers, asked, findings, moved
from benchmarks.study.localisation_page import headline, section
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT

LAYERS = ("a", "b.query", "b.key", "c")


def profile(
    values: dict[int, tuple[float, float, float, float]], quantity: str = "gradient.norm"
) -> pl.DataFrame:
    return pl.DataFrame(
        [
            (step, layer, quantity, one)
            for step, row in values.items()
            for layer, one in zip(LAYERS, row, strict=True)
        ],
        schema=["step", "layer", "quantity", "value"],
        orient="row",
    )


def test_every_fault_is_put_into_modules_of_both_architectures():
    chosen = runs()
    assert len(chosen) == 30 and len({one.folder for one in chosen}) == 30
    assert len({one.case.seed for one in chosen}) == 30
    for setting in ("addition", "text"):
        for kind in KINDS:
            assert len({one.module for one in chosen if (one.case.setting, one.kind) == (setting, kind)}) == 3


@pytest.mark.parametrize(
    ("kind", "step", "factor"),
    [
        ("ramp", AT - 1, 1.0),
        ("ramp", AT + 40, RAMPED**0.5),
        ("ramp", AT + 500, RAMPED),
        ("jump", AT, 15.0),
        ("nan", AT, 1.0),
    ],
)
def test_only_the_modules_rate_is_raised(kind, step, factor):
    injected = replace(runs()[0], kind=kind)
    made = fault(injected)
    assert made.factor(injected.module, step) == pytest.approx(factor) and made.factor("lm_head", step) == 1.0


@pytest.mark.parametrize("kind", ["scale", "dead", "nan", "ramp"])
def test_only_the_modules_weights_are_changed(kind):
    injected = replace(runs()[0], kind=kind)
    model = GPT(injected.case.model).initialise(torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    made = fault(injected)
    made.after_update(model, AT - 1)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    made.after_update(model, AT)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == (set() if kind == "ramp" else {f"{injected.module}.weight"})
    weight, was = model.get_submodule(injected.module).weight, before[f"{injected.module}.weight"]
    if kind == "scale":
        assert torch.equal(weight, 4 * was)
    if kind == "dead":
        assert not weight.any()
    if kind == "nan":
        assert int(weight.isnan().sum()) == 1


def test_a_fused_modules_parts_count_as_it_and_chance_is_their_share():
    values = {AT - 4: (1.0, 1.0, 1.0, 9.0), AT: (1.0, 5.0, 1.0, 4.0), AT + 4: (7.0, 1.0, 1.0, 1.0)}
    assert answers(profile(values), "b", "gradient.norm", "value") == [(AT, True, 0.5), (AT + 4, False, 0.5)]
    assert answers(profile(values), "x", "gradient.norm", "value") == []
    assert answers(profile(values), "b", "adam.lag_rms", "value") == []


def test_what_moved_is_measured_from_earlier_checkpoints_alone():
    quiet = {AT - 4 * k: (10.0, 1.0, 1.0, 1.0) for k in range(1, 5)}
    later = {**quiet, AT: (10.0, 3.0, 1.0, 1.0), AT + 4: (10.0, 3.0, 1.0, 1e9)}
    found = answers(profile(later), "b", "gradient.norm", "ratio")
    assert found == [(AT, True, 0.5), (AT + 4, False, 0.5)], "value alone would always name layer a"
    shrunk = {**quiet, AT: (10.0, 0.01, 1.0, 2.0)}
    assert answers(profile(shrunk), "b", "gradient.norm", "ratio") == [(AT, True, 0.5)], "either way"
    assert answers(profile(shrunk), "b", "gradient.norm", "difference") == [(AT, False, 0.5)]
    assert np.isnan(moved(np.ones((3, 2)), "ratio")).all(), "no baseline yet"


def test_weights_that_are_not_finite_name_the_layer_that_has_them():
    rows = profile({AT: (math.nan, math.nan, math.nan, math.nan)}, "weight.nonfinite").with_columns(
        value=pl.Series([0.0, 0.0, 0.25, 0.0])
    )
    assert answers(rows, "b", "weight.nonfinite", "value") == [(AT, True, 0.5)]
    assert answers(rows, "a", "weight.nonfinite", "value") == [(AT, False, 0.25)]
    alone = rows.filter(pl.col("layer") == "b.key")
    both = pl.concat([alone, profile({AT - 4: (1.0, 1.0, 1.0, 1.0)})])
    assert answers(both, "b", "weight.nonfinite", "value") == [(AT, True, 0.5)], (
        "healthy layers have no such row"
    )


def named(run: str, quantity: str, right: list[bool], kind: str = "ramp") -> list[Named]:
    return [Named(run, kind, "addition", quantity, 4 * k, one, 0.1) for k, one in enumerate(right)]


def test_found_means_right_twice_in_a_row():
    found = findings([
        *named("r0", "good", [False, True, True, True]),
        *named("r1", "good", [True, True, True, True]),
        *named("r2", "good", [True, False, True, False]),
        *named("r0", "lucky", [True, False, False, False]),
    ])
    good, lucky = found
    assert (good.runs, good.found, good.soonest) == (3, 2, (0, 4)) and (lucky.found, lucky.soonest) == (0, ())
    assert good.shares[0] is not None and good.shares[0].value == pytest.approx(9 / 12)
    assert good.shares[1] is None, "no checkpoint lies there"


def test_the_page_says_what_finds_a_fault_and_what_does_not():
    good = [one for k in range(4) for one in named(f"r{k}", "mass", [True] * 6)]
    bad = [one for k in range(4) for one in named(f"r{k}", "gradient norm *", [False] * 6)]
    assert headline("ramp", findings(good + bad)) == "What finds ramp: mass (4 of 4 runs, after 0 steps)."
    assert headline("ramp", findings(bad)) == "Nothing surely finds ramp."
    nan = [Named(f"r{k}", "nan", "text", "weights that are not finite *", 0, True, 0.1) for k in range(3)]
    assert headline("nan", findings(nan)).startswith(
        "What finds nan: weights that are not finite (3 of 3 runs"
    )
    text = "\n".join(section(good + bad))
    assert "| gradient norm * | 4 | 0.00 [0.00, 0.00] |" in text and "4 runs of 1 architectures" in text


def test_a_jump_of_one_modules_rate_is_saved_with_the_run_and_found(tmp_path, monkeypatch):
    for name, value in (("AT", 24),):
        monkeypatch.setattr(f"benchmarks.study.injection.{name}", value)
        monkeypatch.setattr(f"benchmarks.study.localisation.{name}", value)
    case = replace(runs()[3].case, steps=32, first=4, update=Update("Adam", 5e-4, warm_up=1))
    injected = Injected(case, "nan", "transformer.h.0.mlp.c_fc")
    found = asked(injected, tmp_path)
    right = [one for one in found if one.quantity.startswith("weights that are not finite")]
    assert [(one.since, one.right) for one in right] == [(0, True)]
    log = open_run(trained_with_fault(injected, tmp_path)).log
    assert log is not None and math.isnan(log.rows["loss"][-1]) and log.rows["step"][-1] == 25
