"""Rows held in blocks say what the same rows say one by one."""

from __future__ import annotations

import numpy as np
from polars.testing import assert_frame_equal

from hnf_offline.table import Block, Row, Rows, table

PLACES = ["embed", "block.query", "head"], ["embedding", "query", "head"], [0, 1, 5]


def test_a_layer_without_a_value_has_no_row_and_the_others_keep_theirs() -> None:
    values = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 6.0]])
    bounds = values - 0.5, values + 0.5, np.array([[True, True, True], [False, True, True]])
    first, second = Rows(10), Rows(20)
    for at, rows in enumerate((first, second)):
        rows.add(Block(PLACES, "weight.sigma_max", values, bounds), at)
        rows.add(Block(PLACES, "weight.update_norm", values), at, "since step 5")
    expected = [
        Row(20, "embed", "embedding", 0, "weight.sigma_max", 4.0, 3.5, 4.5, False),
        Row(20, "head", "head", 5, "weight.sigma_max", 6.0, 5.5, 6.5),
        Row(20, "embed", "embedding", 0, "weight.update_norm", 4.0, batch="since step 5"),
        Row(20, "head", "head", 5, "weight.update_norm", 6.0, batch="since step 5"),
    ]
    assert list(second) == expected and len(list(first)) == 6
    assert_frame_equal(table(second), table(expected))
    assert [row.value for row in first] == [1.0, 2.0, 3.0] * 2
