"""Traces in the table against the dense float64 Hessian of a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hnf_offline.errors import UsageError
from hnf_offline.linalg.trace import TraceEstimate
from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.layer_curvature import exact_graph
from hnf_offline.profile.measure import measure
from hnf_offline.profile.session import check_settings
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.traces import ExactBlocks, layer_trace_rows, sum_of, trace_rows
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import Layer, layers_of
from hnf_offline.table import Row
from tests.profile.dense import Dense, dense_hessian

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def module() -> GPT:
    config = GPTConfig(7, 5, 2, 2, 8, mlp_width=12, norm="pre", tied=True, initial_std=0.3)
    return GPT(config).initialise(torch.Generator().manual_seed(1)).double().eval()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def dense(module: GPT, tokens: torch.Tensor) -> Dense:
    return dense_hessian(module, layers_of(module), tokens)


def subject_of(module: GPT, tokens: torch.Tensor) -> Subject:
    batch = ReplayBatch.of(tokens, None, "replay")
    return Subject(7, module, layers_of(module), None, batch.cut(2, CPU), batch.cut(2, CPU), "replay")


def traces(rows: list[Row]) -> dict[str, Row]:
    return {row.layer: row for row in rows if row.quantity == "hessian.trace"}


def truth(dense: Dense, path: str) -> float:
    return float(dense.hessian.diagonal()[dense.places[path]].sum())


def test_a_budget_beyond_the_layers_gives_every_trace_exactly(module, tokens, dense) -> None:
    found = traces(layer_trace_rows(subject_of(module, tokens), ProfileSettings(traces=200)))
    assert set(found) == {"", *(layer.path for layer in layers_of(module))}
    for path, row in found.items():
        assert row.value == pytest.approx(truth(dense, path), rel=1e-9, abs=1e-10), path
        assert (row.low, row.high, row.certified, row.step, row.batch) == (None, None, True, 7, "replay")
    assert found[""].value == pytest.approx(float(dense.hessian.trace()))


def test_estimates_lie_within_their_error_bars_and_miss_as_often_as_said(module, tokens, dense) -> None:
    subject = subject_of(module, tokens)
    inside, estimated = 0, 0
    for seed in range(4):
        for path, row in traces(layer_trace_rows(subject, ProfileSettings(traces=12, seed=seed))).items():
            if row.low is None:
                continue
            estimated += 1
            inside += row.low <= truth(dense, path) <= row.high
            half = (row.high - row.low) / 2
            assert abs(row.value - truth(dense, path)) <= 6 * half, path
            assert row.certified == (row.low > 0 or row.high < 0)
    assert estimated >= 50
    assert 0.75 <= inside / estimated <= 1.0


def test_layers_of_one_size_do_not_share_their_test_vectors(module, tokens) -> None:
    seen: dict[str, torch.Tensor] = {}

    class Watching(ExactBlocks):
        def __call__(self, layers, vectors):
            for layer, vector in zip(layers, vectors, strict=True):
                seen.setdefault(layer.path, vector.clone())
            return super().__call__(layers, vectors)

    subject = subject_of(module, tokens)
    graph = exact_graph(module, subject.batches, keep=True)
    trace_rows(subject, ProfileSettings(traces=4), Watching(graph), graph.loss, "replay")
    one, two = (f"transformer.h.{block}.mlp.c_fc" for block in (0, 1))
    assert seen[one].shape == seen[two].shape
    assert abs(float(seen[one] @ seen[two])) < 0.5
    assert float(seen[one].norm()) == pytest.approx(1.0)


def test_layers_multiplied_together_give_what_they_give_alone(module, tokens) -> None:
    class Together(ExactBlocks):
        def groups(self, layers: list[Layer]) -> list[tuple[float, list[Layer]]]:
            return [(1.0, list(layers))]

    subject, settings = subject_of(module, tokens), ProfileSettings(traces=8)
    graph = exact_graph(module, subject.batches, keep=True)
    alone = trace_rows(subject, settings, ExactBlocks(graph), graph.loss, "replay")
    together = trace_rows(subject, settings, Together(graph), graph.loss, "replay")
    assert traces(together) == traces(alone)


def test_with_some_layers_left_out_the_whole_model_is_too(module, tokens) -> None:
    settings = ProfileSettings(traces=4, layers="*.mlp.*")
    found = traces(layer_trace_rows(subject_of(module, tokens), settings))
    assert set(found) == {layer.path for layer in layers_of(module) if ".mlp." in layer.path}


def test_traces_are_measured_where_they_are_asked_for(module, tokens) -> None:
    subject, settings = subject_of(module, tokens), ProfileSettings(tier="curvature", dtype="float64")
    assert not traces(measure(subject, settings))
    found = traces(measure(subject, replace(settings, traces=4)))
    assert set(found) == {"", *(layer.path for layer in layers_of(module))}


def test_a_loss_that_is_not_finite_has_no_traces(tokens) -> None:
    config = GPTConfig(7, 5, 1, 1, 4, mlp_width=4, norm="none")
    broken = GPT(config).initialise(torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        broken.transformer["wte"].weight.fill_(1e30)
    assert layer_trace_rows(subject_of(broken, tokens), ProfileSettings(traces=4)) == []


def test_independent_errors_add_up_in_squares() -> None:
    found = sum_of([TraceEstimate(5.0, 3.0, 12, 100), TraceEstimate(-2.0, 4.0, 8, 50)])
    assert found == TraceEstimate(3.0, 5.0, 20, 150)


@pytest.mark.parametrize("products", [1, 3, -4])
def test_a_budget_that_leaves_no_error_is_refused(products) -> None:
    with pytest.raises(UsageError, match="no error estimate"):
        check_settings(ProfileSettings(traces=products))
