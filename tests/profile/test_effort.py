"""Counting work: by hand, nested, in other threads, products that are known to be made; and the memory taken."""

from __future__ import annotations

import threading

import torch

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.effort import FORWARDS, counted, spend
from hnf_offline.profile.layer_curvature import exact_graph
from hnf_offline.profile.peak import Peak
from hnf_offline.profile.whole import block_of_all
from hnf_offline.run.model.layers import layers_of
from tests.profile.judged import CPU, built_in, structured_rows


def test_work_is_counted_in_forward_passes_of_the_rows() -> None:
    with counted() as effort:
        spend("forward", 4)
        spend("layer product", 8, times=2, share=0.25)
    assert effort.forwards(8) == 0.5 + 2 * 0.25 * FORWARDS["layer product"]
    assert effort.units["layer product"] == 16


def test_nothing_is_counted_outside_and_a_count_inside_is_passed_on() -> None:
    spend("forward", 100)
    with counted() as outer:
        with counted() as inner:
            spend("forward", 3)
        spend("forward", 2)
    assert (inner.rows, outer.rows, outer.units["forward"]) == (3, 5, 5)


def test_another_thread_is_not_counted() -> None:
    with counted() as effort:
        thread = threading.Thread(target=spend, args=("forward", 7))
        thread.start()
        thread.join()
    assert effort.rows == 0


def test_a_graph_that_is_not_kept_is_counted_at_every_product() -> None:
    module = built_in("none")
    batches = ReplayBatch.of(structured_rows(6, 1), None, "replay").cut(2, CPU)
    for keep, graphs in ((True, 1), (False, 4)):
        with counted() as effort:
            whole = block_of_all(exact_graph(module, batches, keep=keep), layers_of(module))
            for _ in range(3):
                whole(torch.ones(whole.dimension))
        assert effort.units["whole product"] == 3 * 6
        assert effort.units["graph"] == graphs * 6


def test_memory_that_was_taken_and_given_back_is_seen() -> None:
    peak = Peak(None)
    block = torch.ones(256 << 20, dtype=torch.uint8)
    del block
    assert peak.bytes >= 200 << 20
