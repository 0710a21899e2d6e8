from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from hnf_offline.report import svg_map
from hnf_offline.report.colours import ABSENT, BROKEN
from hnf_offline.report.layer_map import layer_map, layer_maps
from hnf_offline.report.layer_table import top_layers
from hnf_offline.report.pooling import column_slots, farthest, pooled, slot_values
from hnf_offline.table import Row, table

from . import made


@pytest.fixture(scope="module")
def large():
    run = made.large_run()
    return layer_maps(run.findings, run.log, run.profile)


def small(rows, quantity="hessian.lambda_max"):
    run = made.healthy_run()
    return layer_map(run.findings, None, table(rows), (quantity,), "map_1")


def test_a_cell_is_the_log_ratio_to_its_own_early_median():
    rows = [Row(step, "layers.0.a", "other", 0, "hessian.lambda_max", 4.0) for step in range(5)]
    rows += [Row(5, "layers.0.a", "other", 0, "hessian.lambda_max", 12.0)]
    rows += [Row(step, "layers.0.b", "other", 1, "hessian.lambda_max", 400.0) for step in range(6)]
    grid = small(rows)
    assert np.allclose(grid.values[0], [0, 0, 0, 0, 0, np.log(3)])
    assert np.allclose(grid.values[1], 0)
    assert "layers.0.a at step 5, ×3.0" in grid.title


def test_rows_follow_forward_order_and_the_guilty_layer_is_named():
    run = made.spike_run()
    grid, mass, proxies = layer_maps(run.findings, run.log, run.profile)
    assert [row.layers[0] for row in grid.rows] == [layer for layer, _ in made.LAYERS]
    assert made.GUILTY in grid.title and made.GUILTY in mass.title
    assert proxies.form == "bands"
    assert top_layers(grid)[0].layer == made.GUILTY
    assert top_layers(grid)[0].share == 1.0


def test_the_strip_above_shares_the_step_range_of_the_map():
    run = made.spike_run()
    for grid in layer_maps(run.findings, run.log, run.profile):
        drawn = str(svg_map.layer_map(grid))
        assert f'data-steps="{grid.strip.first:g} {grid.strip.last:g} {svg_map.LEFT} ' in drawn
        _, start, stop = column_slots(grid, grid.strip.first, grid.strip.last)
        assert grid.strip.first <= start < stop <= grid.strip.last


def test_values_that_are_not_finite_and_not_positive_are_drawn_not_dropped():
    values = [1.0, 1.0, 1.0, 1.0, 1.0, float("nan"), float("inf"), -2.0]
    rows = [
        Row(step, "layers.0.a", "other", 0, "hessian.lambda_max", value) for step, value in enumerate(values)
    ]
    rows += [Row(step, "layers.0.b", "other", 1, "hessian.lambda_max", 1.0) for step in range(8) if step != 3]
    grid = small(rows)
    assert list(np.flatnonzero(grid.broken[0])) == [5, 6]
    cells = svg_map.indices(grid, grid.values, grid.broken)
    assert list(cells[0, 5:7]) == [BROKEN, BROKEN]
    assert cells[0, 7] == 2  # the lowest colour
    assert cells[1, 3] == ABSENT
    assert any("at or below 0" in note for note in grid.notes)


def test_uneven_checkpoints_keep_their_distance_and_gaps_stay_empty():
    steps = [10, 20, 30, 60, 70]
    grid = small([Row(step, "layers.0.a", "other", 0, "hessian.lambda_max", 1.0) for step in steps])
    slots, start, stop = column_slots(grid, grid.strip.first, grid.strip.last)
    assert list(slots) == [0, 1, 2, -1, -1, 3, 4]
    assert (start, stop) == (5, 75)


def test_a_dense_window_among_sparse_checkpoints_is_pooled_by_the_farthest_value():
    steps = [0, 500, 1000, *range(1001, 1051), 1500, 2000]
    rows = [
        Row(step, "layers.0.a", "other", 0, "hessian.lambda_max", 9.0 if step == 1025 else 1.0)
        for step in steps
    ]
    grid = small(rows)
    slots, start, stop = column_slots(grid, grid.strip.first, grid.strip.last, most=100)
    values = slot_values(grid, slots, start, stop)
    assert len(slots) == 100
    assert np.nanmax(values) == pytest.approx(np.log(9))
    assert not (slots == -1).any()  # 500 steps is the usual gap here


def test_farthest_keeps_the_sign_and_ignores_what_is_absent():
    pool = farthest(np.array([[0.5, np.nan, 1.0], [-2.0, np.nan, np.nan]]))
    assert pool[0] == -2.0 and np.isnan(pool[1]) and pool[2] == 1.0


def test_400_layers_are_pooled_to_blocks_and_the_event_survives(large):
    grid = large[0]
    shown = pooled(grid, most_rows=svg_map.MOST_ROWS)
    assert len(shown.rows) == 40
    assert np.array_equal(shown.values[20], farthest(grid.values[200:210]))
    assert "layers.20.part" in grid.title
    assert any("400 layers pooled into 40 rows" in note for note in shown.notes)
    assert svg_map.TALLEST / len(shown.rows) > svg_map.SHORTEST_ROW


def test_a_pooled_cell_is_as_certain_as_the_layer_it_shows(large):
    shown = pooled(large[0], most_rows=100)
    share = 1 - shown.certified.mean()
    assert 0.03 < share < 0.07


def test_uncertified_cells_are_marked():
    run = made.spike_run()
    profile = run.profile.filter(pl.col("quantity") == "hessian.lambda_max")
    [grid] = layer_maps(run.findings, run.log, profile)
    assert 'class="dots"' in svg_map.layer_map(grid)
    sure = replace(grid, certified=np.ones_like(grid.certified))
    assert 'class="dots"' not in svg_map.layer_map(sure)


def test_the_title_looks_at_what_came_before_the_worst_onset():
    run = made.spike_run()
    late = pl.col("step") > 151
    other = pl.col("layer") == "model.layers.3.mlp.down_proj"
    profile = run.profile.with_columns(value=pl.when(late & other).then(1e6).otherwise(pl.col("value")))
    title = layer_maps(run.findings, run.log, profile)[0].title
    assert "up to the onset at 151: rose most in " + made.GUILTY in title
