"""The memory plan never asks for the impossible and uses what there is."""

from __future__ import annotations

import gc
import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hnf_offline.profile.memory import (
    DOUBLE_BACKWARD,
    LAYER_VECTORS,
    VECTORS_OF_ALL_LAYERS,
    copies_together,
    free_bytes,
    plan_memory,
    saved_bytes,
)
from hnf_offline.run.model.gpt import GPT, GPTConfig

MiB = 1 << 20
sizes = st.integers(0, 1 << 40)


@given(row=sizes, rows=st.integers(1, 10_000), parameters=sizes, free=sizes)
def test_there_is_always_a_row_and_never_more_than_there_are(
    row: int, rows: int, parameters: int, free: int
) -> None:
    plan = plan_memory(row, rows, parameters, free)
    assert 1 <= plan.rows <= rows
    assert plan.peak_bytes >= parameters
    if plan.keep_graphs:
        assert plan.rows == rows


@given(row=sizes, rows=st.integers(1, 10_000), parameters=sizes, frees=st.tuples(sizes, sizes).map(sorted))
def test_more_memory_never_means_fewer_rows(row: int, rows: int, parameters: int, frees: list[int]) -> None:
    less, more = (plan_memory(row, rows, parameters, free) for free in frees)
    assert less.rows <= more.rows
    assert less.keep_graphs <= more.keep_graphs


@given(row=st.integers(1, MiB), rows=st.integers(1, 1000), parameters=st.integers(0, 64 * MiB))
def test_a_plan_with_room_for_more_than_a_row_stays_within_its_share(
    row: int, rows: int, parameters: int
) -> None:
    free = 8 << 30
    plan = plan_memory(row, rows, parameters, free)
    if plan.rows > 1:
        assert plan.peak_bytes <= free // 2


@given(row=st.integers(8 * MiB, 64 * MiB), rows=st.integers(8, 256), parameters=st.integers(0, MiB))
def test_graphs_and_vectors_take_what_one_gradient_of_the_batch_takes(
    row: int, rows: int, parameters: int
) -> None:
    plan = plan_memory(2 * row, rows, parameters, 1 << 50, ordinary_bytes=row)
    gradient = row * rows + parameters
    if plan.rows > 1:
        assert plan.peak_bytes - parameters <= gradient + VECTORS_OF_ALL_LAYERS * parameters
    assert not plan.keep_graphs
    assert plan.lot_bytes * LAYER_VECTORS <= gradient / 4


def test_graphs_of_a_small_batch_are_kept_since_they_go_together_anyway() -> None:
    plan = plan_memory(1000, 16, 4000, 8 << 30)
    assert (plan.rows, plan.keep_graphs) == (16, True)
    large = plan_memory(MiB, 1, 500 * MiB, 64 << 30)  # one row: building its graph anew would save nothing
    assert (large.rows, large.keep_graphs) == (1, True)


def test_layers_side_by_side_may_be_the_peak() -> None:
    # Graphs that fit into what is free in any case, and eight copies of nearly all rows: the copies are more.
    plan = plan_memory(MiB // 2, 16, 1000, 64 << 30)
    graphs = plan.rows * DOUBLE_BACKWARD * MiB // 2
    copies = copies_together(MiB // 2, plan.rows, 16) * plan.rows * MiB // 2
    assert copies > graphs and copies <= plan.peak_bytes <= 1.01 * copies


def test_what_training_saves_is_no_more_than_what_the_math_kernel_saves() -> None:
    module = GPT(GPTConfig(50, 64, 2, 4, 16)).initialise(torch.Generator().manual_seed(0)).eval()
    tokens = torch.zeros(2, 64, dtype=torch.int64)
    assert 0 < saved_bytes(module, tokens, None, plain=False) < saved_bytes(module, tokens, None)


def test_what_a_forward_pass_keeps_grows_with_the_rows() -> None:
    module = GPT(GPTConfig(50, 8, 2, 2, 16)).initialise(torch.Generator().manual_seed(0))
    tokens = torch.zeros(8, 8, dtype=torch.int64)
    one, two, eight = (saved_bytes(module, tokens[:rows], None) for rows in (1, 2, 8))
    assert 0 < one < two < eight
    assert 3 * one < eight <= 8 * one


def test_what_was_measured_is_freed_again() -> None:
    module = GPT(GPTConfig(50, 8, 1, 2, 16)).initialise(torch.Generator().manual_seed(0))
    weight = weakref.ref(next(module.parameters()))
    saved_bytes(module, torch.zeros(1, 8, dtype=torch.int64), None)
    del module
    gc.collect()
    assert weight() is None, "a graph that is never freed keeps the weights of every checkpoint"


def test_weights_do_not_count_as_activations() -> None:
    module = nn.Sequential(nn.Embedding(3, 256), nn.Linear(256, 256), nn.Linear(256, 3))
    weights = sum(value.numel() * value.element_size() for value in module.parameters())
    kept = saved_bytes(module, torch.zeros(1, 8, dtype=torch.int64), None)
    assert 2 * 8 * 256 * 4 <= kept < weights / 4  # what goes into both linear layers, and little else


def test_the_machine_says_how_much_is_free() -> None:
    assert free_bytes(torch.device("cpu")) > MiB
