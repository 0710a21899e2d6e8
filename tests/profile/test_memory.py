"""The memory plan never asks for the impossible and uses what there is."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hnf_offline.profile.memory import free_bytes, plan_memory, saved_bytes
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


def test_what_a_forward_pass_keeps_grows_with_the_rows() -> None:
    module = GPT(GPTConfig(50, 8, 2, 2, 16)).initialise(torch.Generator().manual_seed(0))
    tokens = torch.zeros(8, 8, dtype=torch.int64)
    one, two, eight = (saved_bytes(module, tokens[:rows], None) for rows in (1, 2, 8))
    assert 0 < one < two < eight
    assert 3 * one < eight <= 8 * one


def test_weights_do_not_count_as_activations() -> None:
    module = nn.Sequential(nn.Embedding(3, 256), nn.Linear(256, 256), nn.Linear(256, 3))
    weights = sum(value.numel() * value.element_size() for value in module.parameters())
    kept = saved_bytes(module, torch.zeros(1, 8, dtype=torch.int64), None)
    assert 2 * 8 * 256 * 4 <= kept < weights / 4  # what goes into both linear layers, and little else


def test_the_machine_says_how_much_is_free() -> None:
    assert free_bytes(torch.device("cpu")) > MiB
