"""Every layer's extreme eigenvalues against dense float64 blocks, through the function that measures a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.profile.measure import measure
from hnf_offline.table import Row
from tests.profile.dense import Figures, Judged, judge, listing
from tests.profile.judged import (
    MODELS,
    NEEDS_TRANSFORMERS,
    STEPS,
    built_in,
    case,
    settings,
    structured_rows,
    subject_of,
)

#: Relative error that an accuracy promises for what it certifies.
PROMISED = {"standard": 0.01, "certified": 0.001}
#: Judged at every run of the tests; all others are slow.
QUICK = (
    "GPT pre-norm, tied",
    "Llama, grouped queries, tied",
    "GPT-2, fused projections",
    "torch encoder",
    "ViT, images",
)


def cases() -> list[object]:
    return [
        pytest.param(
            name, age, accuracy,
            marks=() if name in QUICK and (age, accuracy) == ("trained", "standard") else pytest.mark.slow,
        )
        for name in MODELS
        for age in STEPS
        for accuracy in PROMISED
    ]  # fmt: skip


@cache
def measured(name: str, age: str, accuracy: str) -> tuple[list[Row], list[Judged]]:
    if name in NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers")
    own = case(name, age)
    rows = measure(own.subject, settings(accuracy))
    return rows, judge(rows, own.dense, own.name)


def dominant(judged: Sequence[Judged]) -> list[Judged]:
    """The end that is larger in size, of every block; and S."""
    return [one for one in judged if one.dominant]


@pytest.mark.parametrize(("name", "age", "accuracy"), cases())
def test_every_layer_equals_its_dense_block(name: str, age: str, accuracy: str) -> None:
    _, judged = measured(name, age, accuracy)
    ends, promised = dominant(judged), PROMISED[accuracy]
    sure = [one for one in ends if one.certified]
    assert max(one.error for one in sure) <= promised, listing(sure, promised)
    # A solver that certifies nothing would pass the line above, one whose doubts are misses would not pass these.
    assert len(sure) >= 0.8 * len(ends), Figures.of(ends)
    # Where both ends are nearly as large, the wrong one may be looked for: then the other one says that it is unsure.
    wrong = [one for one in ends if one.error > 0.05 or one.value * one.truth < 0]
    assert len(wrong) <= 1 and not any(one.certified for one in wrong), listing(ends, 0.05)


@pytest.mark.parametrize(("name", "age", "accuracy"), cases())
def test_most_values_are_certified(name: str, age: str, accuracy: str) -> None:
    _, judged = measured(name, age, accuracy)
    ends = dominant(judged)
    assert sum(one.certified for one in ends) >= 0.85 * len(ends), Figures.of(ends)


@pytest.mark.parametrize(("name", "age", "accuracy"), cases())
def test_the_smaller_end_is_right_or_not_certified(name: str, age: str, accuracy: str) -> None:
    _, judged = measured(name, age, accuracy)
    other = [one for one in judged if not one.dominant and one.certified]
    assert all(one.error <= 0.05 for one in other), listing(other, 0.05)


@pytest.mark.parametrize(("name", "age", "accuracy"), cases())
def test_no_block_exceeds_the_whole(name: str, age: str, accuracy: str) -> None:
    # Cauchy: the eigenvalues of a diagonal block lie between those of the matrix.
    rows, _ = measured(name, age, accuracy)
    found = {(row.quantity, row.layer): row for row in rows if row.quantity.startswith("hessian.")}
    for (quantity, layer), row in found.items():
        if not layer or quantity not in {
            "hessian.lambda_max",
            "hessian.lambda_min",
            "hessian.stability_ratio",
        }:
            continue
        whole = found[quantity, ""]
        assert whole.low is not None and whole.high is not None
        if quantity == "hessian.lambda_min":
            assert row.value >= whole.low * 1.01, (quantity, layer)
        else:
            assert row.value <= whole.high * 1.01, (quantity, layer)


@pytest.mark.parametrize("age", STEPS)
def test_a_key_bias_has_no_curvature_however_large_its_step(age: str) -> None:
    # softmax does not see a number added to all scores of a query, so the key bias never gets a gradient: Adam's
    # second moment is the square of rounding errors, its step metric enormous, and so is what rounding makes of S.
    own = case("GPT pre-norm, tied", age)
    assert own.dense.metric is not None
    keys = {path: place for path, place in own.dense.places.items() if path.endswith("c_attn.key")}
    for place in keys.values():
        bias = place[-8:]
        assert own.dense.metric[bias].min() > 100 * own.dense.metric.median()
        assert own.dense.hessian[bias].abs().max() < 1e-12 * own.dense.hessian.abs().max()
    _, judged = measured("GPT pre-norm, tied", age, "standard")
    ratios = [one for one in judged if one.quantity == "hessian.stability_ratio" and one.layer in {"", *keys}]
    assert len(ratios) == 3
    assert all(one.error <= 0.05 for one in ratios), listing(ratios, 0.05)


def rotated(module: nn.Module, basis: Tensor) -> nn.Module:
    """The same function of a decoder without norms, its residual stream written in another orthonormal basis."""
    turned = built_in("none")
    with torch.no_grad():
        for name, value in module.named_parameters():
            target = turned.get_parameter(name)
            writes = name.endswith(("attn.c_proj.weight", "mlp.c_proj.weight"))
            reads = name.endswith((
                "wte.weight",
                "wpe.weight",
                "c_attn.weight",
                "c_fc.weight",
                "lm_head.weight",
            ))
            if writes:
                target.copy_(basis.T @ value)
            elif reads or name.endswith("c_proj.bias"):
                target.copy_(value @ basis)
            else:
                target.copy_(value)
    return turned


def test_another_basis_of_the_residual_stream_changes_no_eigenvalue() -> None:
    own = case("GPT without norms", "trained").subject
    random = torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    basis = torch.linalg.qr(random).Q.float()
    module, tokens = rotated(own.module, basis), structured_rows(6, 7)
    with torch.no_grad():
        torch.testing.assert_close(module(tokens), own.module(tokens), rtol=1e-4, atol=1e-4)
    before, after = (
        {
            (row.quantity, row.layer): row
            for row in measure(subject_of(one, tokens, None, None, 60), settings("standard"))
            if row.quantity in {"hessian.lambda_max", "hessian.lambda_min"}
        }
        for one in (own.module, module)
    )
    assert before.keys() == after.keys() and len(before) == 32
    compared = 0
    for key, row in before.items():
        if row.certified and after[key].certified:
            compared += 1
            assert after[key].value == pytest.approx(row.value, rel=0.02), key
    assert compared >= 16


@pytest.mark.slow
@pytest.mark.parametrize("accuracy", list(PROMISED))
def test_over_all_models_misses_say_that_they_are_not_certified(
    accuracy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = [one for name in MODELS for age in STEPS for one in measured(name, age, accuracy)[1]]
    with capsys.disabled():
        print(f"\n{accuracy}, dominant ends: {Figures.of(dominant(judged))}")
        print(f"{accuracy}, both ends: {Figures.of(judged)}")
    figures = Figures.of(judged)
    assert figures.certified_off_one <= 0.01, listing([one for one in judged if one.certified], 0.01)
    assert figures.certified_off_five == 0, listing([one for one in judged if one.certified], 0.05)


def test_the_referee_sees_a_wrong_value() -> None:
    own = case("GPT pre-norm, tied", "trained")
    rows, _ = measured("GPT pre-norm, tied", "trained", "standard")
    assert own.dense.asymmetry < 1e-12

    def changed(change: Callable[[Row], float]) -> list[Judged]:
        wrong = [
            Row(row.step, row.layer, row.kind, row.depth, row.quantity, change(row), row.low, row.high)
            for row in rows
        ]
        return dominant(judge(wrong, own.dense, own.name))

    assert all(one.error > 0.02 for one in changed(lambda row: 1.2 * row.value))
    assert all(one.error == float("inf") for one in changed(lambda row: -row.value))
    assert all(one.error == float("inf") for one in changed(lambda row: float("nan")))
    with pytest.raises(KeyError):
        judge([row for row in rows if row.layer != "transformer.ln_f"], own.dense, own.name)
