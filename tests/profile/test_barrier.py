"""The straight line between two runs: none within a basin, planted ones found, and every reason why there is none."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hnf_offline.cli import main
from hnf_offline.profile import ProfileSettings
from hnf_offline.profile.barrier import MOST_STEPS, barriers_between, planned_forwards
from hnf_offline.profile.effort import counted
from hnf_offline.profile.session import open_session
from hnf_offline.run import open_run
from hnf_offline.run.formats import load_weights
from hnf_offline.run.model.build import load_weights_into
from tests.profile.test_landscape import permuted, weights_file

ALL = ProfileSettings(dtype="float64", device="cpu")


@pytest.fixture
def pair(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of one run."""
    return tiny, Path(shutil.copytree(tiny, tmp_path / "other"))


def noisy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: one + 0.01 * torch.randn(one.shape, generator=generator) for name, one in tensors.items()}


def edit(run: Path, **values: Any) -> None:
    file = run / "config.json"
    written = json.loads(file.read_text())
    written["model"] |= values
    file.write_text(json.dumps(written))


def test_a_run_and_itself_and_one_nearby_have_none(pair: tuple[Path, Path], rewrite) -> None:
    rewrite(weights_file(pair[1], 24), noisy)
    with counted() as effort:
        found, without = barriers_between(*map(open_run, pair), ALL)
    assert without == () and len(found) == MOST_STEPS
    assert found[0].step == 4 and found[-1].step == 24
    assert all(one.value <= 1e-3 and one.certified and one.low <= one.value <= one.high for one in found)
    assert found[0].value == 0.0 and found[0].loss_a == found[0].loss_b
    assert found[-1].loss_a != found[-1].loss_b
    rows = len(open_session(open_run(pair[0]), ALL).batch.tokens)  # type: ignore[union-attr]
    assert effort.forwards(rows) == planned_forwards(*map(open_run, pair), ALL)


def test_the_same_function_in_another_basin_has_the_barrier_that_the_line_has(
    pair: tuple[Path, Path], rewrite
) -> None:
    rewrite(weights_file(pair[1], 24), permuted)
    run_a, run_b = map(open_run, pair)
    found, _ = barriers_between(run_a, run_b, ALL)
    last = found[-1]
    assert last.loss_a == pytest.approx(last.loss_b, rel=1e-9) and last.value > 0.02
    session = open_session(run_a, ALL)
    assert session is not None
    ends = []
    for run in (run_a, run_b):
        load_weights_into(session.module, load_weights(run.checkpoints[-1]))
        ends.append([one.detach().clone() for one in session.module.parameters()])
    tokens, losses = session.batch.tokens, []
    for place in range(9):
        with torch.no_grad():
            for one, a, b in zip(session.module.parameters(), *ends, strict=True):
                one.copy_(torch.lerp(a, b, place / 8))
            logits = session.module(tokens)[:, :-1]
            losses.append(float(functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())))
    assert last.value == pytest.approx(max(losses) - losses[0], rel=1e-6)
    assert last.place == losses.index(max(losses)) / 8


def test_heads_cut_otherwise_are_another_function_of_the_same_shapes(pair: tuple[Path, Path]) -> None:
    edit(pair[1], n_head=4)
    found, (sentence,) = barriers_between(*map(open_run, pair), ALL)
    assert found == () and "differ in more than their weights" in sentence
    edit(pair[1], n_head=2, initial_std=0.1)
    assert len(barriers_between(*map(open_run, pair), ALL)[0]) == MOST_STEPS


def test_other_shapes_are_told(tiny: Path, record_run, tmp_path: Path) -> None:
    wide = record_run(tmp_path / "wide", mlp_width=16)
    found, (sentence,) = barriers_between(open_run(tiny), open_run(wide), ALL)
    assert found == () and "other parameters or shapes" in sentence and "mlp" in sentence


def test_no_common_step_and_no_model_are_told(pair: tuple[Path, Path]) -> None:
    run_a, run_b = map(open_run, pair)
    odd = ProfileSettings(dtype="float64", device="cpu", first_step=999)
    assert barriers_between(run_a, run_b, odd) == (
        (),
        ("No barrier between the runs: they have no checkpoint of one step.",),
    )
    assert planned_forwards(run_a, run_b, odd) == 0
    for run in pair:
        (run / "batches.safetensors").unlink()
    found, (sentence,) = barriers_between(*map(open_run, pair), ALL)
    assert found == () and "neither has both a model and rows" in sentence


def test_rows_of_b_stand_in_where_a_has_none(pair: tuple[Path, Path]) -> None:
    (pair[0] / "batches.safetensors").unlink()
    found, without = barriers_between(*map(open_run, pair), ALL)
    assert without == () and all(one.batch.endswith("(B)") for one in found)


def test_a_broken_checkpoint_costs_its_own_step_alone(pair: tuple[Path, Path], rewrite) -> None:
    rewrite(
        weights_file(pair[1], 24), lambda tensors: {name: one * math.nan for name, one in tensors.items()}
    )
    rewrite(weights_file(pair[0], 4), lambda tensors: dict(list(tensors.items())[:1]))
    found, without = barriers_between(*map(open_run, pair), ALL)
    assert len(found) == MOST_STEPS - 2 and not {4, 24} & {one.step for one in found}
    assert [sentence.split(":")[0] for sentence in without] == [
        "No barrier at step 4",
        "No barrier at step 24",
    ]
    assert "the loss of B is not finite" in without[1]


def test_the_command_line_tells_it_everywhere(
    pair: tuple[Path, Path], rewrite, tmp_path: Path, capsys
) -> None:
    rewrite(weights_file(pair[1], 24), permuted)
    out = tmp_path / "out"
    command = ["diff", *map(str, pair), "--tier", "forward", "--device", "cpu", "--out", str(out)]
    assert main([*command, "--barrier", "--plan"]) == 0
    assert "The way between the runs: 47 forward passes" in capsys.readouterr().out
    assert main([*command, "--barrier", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["step"] for one in told["barriers"]] == [4, 8, 12, 20, 24] and told["barriers"][-1][
        "value"
    ] > 0.02
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "barrier, nats" in page and "nats on the straight line from A to B at 24" in page
    assert page.count("<code>landscape.linear_barrier</code>") == 1
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert "barrier" not in plain and "barrier, nats" not in (out / "index.html").read_text(encoding="utf-8")
    assert main([*command, "--barrier"]) == 0
    assert "nats on the straight line from A to B at 24" in " ".join(capsys.readouterr().out.split())
