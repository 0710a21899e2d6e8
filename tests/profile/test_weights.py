"""The tier `weights`: rows from files alone, against each other and against what was planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file
from torch import nn

from hnf_offline.linalg.hessian import Part
from hnf_offline.profile import snapshot
from hnf_offline.profile import weights as profile_weights
from hnf_offline.profile.comparisons import neighbours_of, occasion
from hnf_offline.profile.session import Session
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.snapshot import snapshot_of_parameters
from hnf_offline.profile.weight_rows import alone_rows, occasion_rows
from hnf_offline.profile.weights import heads_of, measure_weights
from hnf_offline.quantities import catalogue
from hnf_offline.run import open_run
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import Layer, layers_of
from hnf_offline.run.records import Checkpoint, Run
from hnf_offline.table import KINDS

WEIGHTS = ProfileSettings(tier="weights")


def weights_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def one(table: pl.DataFrame, step: int, layer: str, quantity: str) -> dict[str, object]:
    (row,) = table.filter(
        pl.col("step") == step, pl.col("layer") == layer, pl.col("quantity") == quantity
    ).to_dicts()
    return row


def names(run: Path) -> tuple[str, str]:
    """An MLP's layer and its weight."""
    weight = next(name for name in weights_of(run, 4) if name.endswith("c_fc.weight"))
    return weight.removesuffix(".weight"), weight


def test_every_number_is_that_of_the_files(tiny: Path, tmp_path: Path) -> None:
    found = measure_weights(open_run(tiny), WEIGHTS, tmp_path / "out")
    assert found.skipped == () and found.parameters
    table = found.table
    assert set(table["quantity"].unique()) <= set(catalogue()) and set(table["kind"].unique()) <= set(KINDS)
    layer, name = names(tiny)
    at = {step: weights_of(tiny, step) for step in (4, 8, 12)}
    of = {step: torch.cat([value.flatten() for key, value in at[step].items() if key.startswith(f"{layer}.")])
          for step in at}  # fmt: skip
    assert one(table, 12, layer, "weight.mean")["value"] == pytest.approx(of[12].mean().item(), rel=1e-5)
    singular = torch.linalg.svdvals(at[12][name].double())
    assert one(table, 12, layer, "weight.sigma_max")["value"] == pytest.approx(singular[0].item())
    assert one(table, 12, layer, "weight.condition")["value"] == pytest.approx(
        (singular[0] / singular[-1]).item(), rel=1e-5
    )
    moved = one(table, 12, layer, "weight.update_norm")
    assert moved["batch"] == "since step 8"
    assert moved["value"] == pytest.approx((of[12] - of[8]).norm().item(), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(of[12] - of[8], of[8] - of[4], dim=0)
    assert one(table, 12, layer, "weight.update_cosine")["value"] == pytest.approx(cosine.item(), rel=1e-4)
    far = one(table, 12, layer, "weight.distance_from_first")
    assert far["batch"] == "since step 4"
    assert far["value"] == pytest.approx(((of[12] - of[4]).norm() / of[4].norm()).item(), rel=1e-5)
    # The first has nothing before it, the second no change before its own.
    assert not table.filter(pl.col("step") == 4, pl.col("batch") != "").height
    assert not table.filter(pl.col("step") == 8, pl.col("quantity") == "weight.update_cosine").height


def test_increments_of_queries_and_keys_are_those_of_each_head(tiny: Path, tmp_path: Path) -> None:
    table = measure_weights(open_run(tiny), WEIGHTS, tmp_path / "out").table
    weight = {step: weights_of(tiny, step) for step in (4, 8)}
    name = next(key for key in weight[4] if key.endswith("c_attn.weight"))
    heads, width = 2, 8
    query, key = (
        {step: weight[step][name].double()[rows].reshape(heads, -1, width) for step in weight}
        for rows in (slice(0, width), slice(width, 2 * width))
    )
    change = (query[8] - query[4]).mT @ key[4] + query[4].mT @ (key[8] - key[4])
    norms = change.flatten(1).norm(dim=1)
    layer = name.removesuffix(".weight") + ".query"
    found = one(table, 8, layer, "increment.qk2_norm")
    assert found["value"] == pytest.approx(norms.max().item(), rel=1e-5)
    assert one(table, 8, layer, "increment.qk2_norm_head")["value"] == int(norms.argmax())
    third = ((query[8] - query[4]).mT @ (key[8] - key[4])).flatten(1).norm(dim=1)
    assert one(table, 8, layer, "increment.qk3_norm")["value"] == pytest.approx(third.max().item(), rel=1e-4)


def test_heads_that_share_a_key_are_measured_with_it() -> None:
    heads, keys, size, width = 6, 2, 3, 10
    layers = tuple(
        Layer(f"attention.{kind[0]}_proj", kind, 1, (Part(f"{kind}.weight", (count * size, width)),))
        for kind, count in (("query", heads), ("key", keys))
    )
    weights = [
        {
            "query.weight": torch.randn(heads * size, width, generator=torch.Generator().manual_seed(seed)),
            "key.weight": torch.randn(keys * size, width, generator=torch.Generator().manual_seed(9 + seed)),
        }
        for seed in range(2)
    ]
    before, now = (
        snapshot_of_parameters(step, layers, own, heads={"attention.q_proj": (heads, keys)})
        for step, own in enumerate(weights)
    )
    (rows,) = occasion_rows([occasion(now, [before])], torch.device("cpu"))
    found = {row.quantity: row.value for row in rows}
    (query, key), (later_query, later_key) = (
        (
            own["query.weight"].double().reshape(heads, size, width),
            own["key.weight"].double().reshape(keys, size, width).repeat_interleave(heads // keys, 0),
        )
        for own in weights
    )
    moved = (later_query - query).mT @ key + query.mT @ (later_key - key)
    norms = moved.flatten(1).norm(dim=1)
    assert found["increment.qk2_norm"] == pytest.approx(norms.max().item(), rel=1e-6)
    assert found["increment.qk2_norm_head"] == int(norms.argmax())
    third = ((later_query - query).mT @ (later_key - key)).flatten(1).norm(dim=1)
    assert found["increment.qk3_norm"] == pytest.approx(third.max().item(), rel=1e-6)
    assert found["increment.qk3_norm_head"] == int(third.argmax())


def test_moments_of_two_checkpoints_are_compared(tiny: Path, tmp_path: Path) -> None:
    table = measure_weights(open_run(tiny), WEIGHTS, tmp_path / "out").table
    cosines = table.filter(pl.col("quantity") == "gradient.moment_cosine")
    assert set(cosines["step"].unique()) == {8, 12, 16, 20, 24}
    assert bool((cosines["value"].abs() <= 1 + 1e-6).all())


def test_a_rerun_reads_its_shards_and_a_changed_predecessor_makes_them_anew(
    tiny: Path, tmp_path: Path
) -> None:
    first = measure_weights(open_run(tiny), WEIGHTS, tmp_path / "out").table
    cached: list[int] = []
    again = measure_weights(
        open_run(tiny), WEIGHTS, tmp_path / "out", on_progress=lambda told: cached.append(told.cached)
    ).table
    assert cached[-1] == 6
    assert_frame_equal(first, again)
    # Without step 8 the change into step 12 is another one.
    sparse = ProfileSettings(tier="weights", every=2)
    table = measure_weights(open_run(tiny), sparse, tmp_path / "out").table
    layer, _ = names(tiny)
    assert one(table, 12, layer, "weight.update_norm")["batch"] == "since step 4"


def test_without_a_model_every_tensor_speaks_for_itself(tiny: Path, tmp_path: Path) -> None:
    for file in [tiny / "batches.safetensors", *tiny.glob("**/config.json"), *tiny.glob("run.toml")]:
        file.unlink(missing_ok=True)
    run = open_run(tiny)
    found = measure_weights(run, WEIGHTS, tmp_path / "out")
    assert found.parameters is None
    _, name = names(tiny)
    singular = torch.linalg.svdvals(weights_of(tiny, 24)[name].double())
    assert one(found.table, 24, name, "weight.sigma_max")["value"] == pytest.approx(singular[0].item())
    assert one(found.table, 24, name, "weight.update_ratio")["batch"] == "since step 20"
    assert not found.table.filter(pl.col("quantity").str.starts_with("increment.")).height


def test_weights_that_are_not_finite_end_a_checkpoint_and_are_nobodys_past(
    tiny: Path, tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    _, name = names(tiny)

    def poison(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights[name][0, 0] = torch.nan
        return weights

    rewrite(tiny / "checkpoints" / "step-000012" / "model.safetensors", poison)
    table = measure_weights(open_run(tiny), WEIGHTS, tmp_path / "out").table
    assert set(table.filter(pl.col("step") == 12)["quantity"].unique()) == {"weight.nonfinite"}
    assert set(table.filter(pl.col("step") == 16)["batch"].unique()) == {"", "since step 8", "since step 4"}


def test_neighbours_are_of_one_kind_and_heads_come_from_the_module() -> None:
    module = GPT(GPTConfig(11, 6, 3, 2, 8, mlp_width=12))
    layers = layers_of(module)
    neighbours = neighbours_of(layers)
    assert neighbours["transformer.h.2.mlp.c_fc"].path == "transformer.h.1.mlp.c_fc"
    assert not any(path.startswith("transformer.h.0.") for path in neighbours)
    assert set(heads_of(module, layers).values()) == {(2, 2)}
    assert heads_of(nn.Linear(2, 2), ()) == {}


@pytest.mark.parametrize("size", [1, 2, 99, 100, 101, 1234])
def test_quantiles_of_layers_are_those_of_sorted_weights(size: int) -> None:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(size))
    layer = (Layer("norm", "norm", 0, (Part("norm.weight", (size,)),)),)
    found = alone_rows(snapshot_of_parameters(3, layer, {"norm.weight": weight}))
    rows = {row.quantity: row.value for row in found}
    for share in (1, 25, 50, 75, 99):
        exact = np.quantile(weight.numpy(), share / 100, method="inverted_cdf")
        assert rows[f"weight.quantile_{share:02d}"] == pytest.approx(float(exact))
    assert rows["weight.largest"] == pytest.approx(weight.abs().max().item())


@pytest.mark.parametrize("together", [1, 200, 1 << 22])
def test_layers_and_checkpoints_measured_together_have_their_own_values(
    monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(snapshot, "TOGETHER", together)
    layers: tuple[Layer, ...] = ()
    weights: list[dict[str, torch.Tensor]] = []
    moments: list[dict[str, torch.Tensor]] = []
    snapshots: list[snapshot.Snapshot] = []
    for step in range(7):
        module = GPT(GPTConfig(11, 6, 3, 2, 8, mlp_width=12)).initialise(torch.Generator().manual_seed(step))
        layers = layers_of(module)
        weights.append({name: value.detach().clone() for name, value in module.named_parameters()})
        for number, value in enumerate(weights[-1].values()):
            value.mul_(1 + number).add_(0.01 * step)
        # Nothing of the optimizer was saved at step 3, and of one block never.
        moments.append({
            name: value.square() for name, value in weights[-1].items() if "h.1." not in name and step != 3
        })
        snapshots.append(
            snapshot_of_parameters(step, layers, weights[-1], moments[-1], heads_of(module, layers))
        )
    # Each one alone against those before it, and all of them at once: the first ones have less behind them.
    occasions = [
        occasion(now, snapshots[max(0, at - 2) : at][::-1], snapshots[0] if at else None)
        for at, now in enumerate(snapshots)
    ]
    rows = occasion_rows(occasions, torch.device("cpu"))
    for own, one in zip(rows, occasions, strict=True):
        values = {(row.layer, row.quantity, row.batch): row.value for row in own}
        assert len(values) == len(list(own)) and {row.step for row in own} == {one.now.step}
        (alone,) = occasion_rows([one], torch.device("cpu"))
        apart = {(row.layer, row.quantity, row.batch): row.value for row in alone}
        assert values == pytest.approx(apart, rel=1e-6, abs=1e-9)

    def flat(layer: Layer, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([part.gather(tensors[part.parameter]) for part in layer.parts]).double()

    neighbours = neighbours_of(layers)
    for at in (2, 3, 4, 5, 6):
        values = {(row.layer, row.quantity): row.value for row in rows[at]}
        for layer in layers:
            start, weight, earlier, earliest = (flat(layer, weights[one]) for one in (0, at, at - 1, at - 2))
            expected = {
                "weight.mean": weight.mean(),
                "weight.deviation": weight.std(correction=0),
                "weight.largest": weight.abs().max(),
                "weight.quantile_50": weight.sort().values[-(-weight.numel() // 2) - 1],
                "weight.update_norm": (weight - earlier).norm(),
                "weight.update_cosine": torch.cosine_similarity(weight - earlier, earlier - earliest, dim=0),
                "weight.distance_from_first": (weight - start).norm() / start.norm(),
            }
            if layer.path in neighbours:
                other = flat(neighbours[layer.path], weights[at])
                away = (weight - other).norm() / (weight.square().sum() + other.square().sum()).sqrt()
                expected["weight.distance_to_neighbour"] = away
            if all(part.parameter in moments[one] for part in layer.parts for one in (at, at - 1)):
                both = [flat(layer, moments[one]) for one in (at, at - 1)]
                expected["gradient.moment_cosine"] = torch.cosine_similarity(*both, dim=0)
            else:
                assert (layer.path, "gradient.moment_cosine") not in values
            for quantity, value in expected.items():
                assert values[layer.path, quantity] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), (
                    quantity
                )
        batches = {row.quantity: row.batch for row in rows[at]}
        assert batches["weight.update_norm"] == f"since step {at - 1}"
        assert batches["weight.distance_from_first"] == "since step 0"


def test_a_model_of_any_size_is_measured_in_the_same_numbers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    tables = []
    read: list[int] = []
    whole = profile_weights.snapshot_of

    def counted(run: Run, session: Session | None, checkpoint: Checkpoint) -> snapshot.Snapshot:
        read.append(checkpoint.step)
        return whole(run, session, checkpoint)

    monkeypatch.setattr(profile_weights, "snapshot_of", counted)
    for most in (1, 4):
        monkeypatch.setattr(profile_weights, "MOST_CHECKPOINTS", most)
        told.append((0, 0))
        found = measure_weights(
            open_run(tiny),
            WEIGHTS,
            tmp_path / str(most),
            on_progress=lambda one: told.append((one.step, one.done)),
        )
        tables.append(found.table)
    assert_frame_equal(*tables, rel_tol=1e-6, abs_tol=1e-9)
    assert read == 2 * [4, 8, 12, 16, 20, 24]  # each once, though three others are measured against it
    # One at a time until the size of the model is known, then side by side.
    assert told == [(0, 0), *((4 * at, at) for at in range(1, 7)), (0, 0), (4, 1), (20, 5), (24, 6)]


def test_weights_of_few_bits_are_measured_in_many() -> None:
    weight = torch.randn(4000, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer = (Layer("norm", "norm", 0, (Part("norm.weight", (4000,)),)),)
    rows = {
        row.quantity: row.value
        for row in alone_rows(snapshot_of_parameters(3, layer, {"norm.weight": weight}))
    }
    assert rows["weight.mean"] == pytest.approx(weight.double().mean().item(), rel=1e-4)
    assert rows["weight.deviation"] == pytest.approx(weight.double().std(correction=0).item(), rel=1e-5)
