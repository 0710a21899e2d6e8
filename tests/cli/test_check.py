"""`hnf check` as a user runs it, and what `hnf report` says of the series first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hnf_offline.check.registry import checks


@pytest.fixture
def whole_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that says how it was trained: every step on all rows, each position's label in its own place."""
    shutil.copytree(tiny_run, tmp_path / "whole")
    (tmp_path / "whole" / "run.toml").write_text('[batches]\nsteps = "all"\naligned = true\n')
    return tmp_path / "whole"


@pytest.fixture
def bad_run(whole_run: Path, tmp_path: Path) -> Path:
    """A run whose third checkpoint holds the weights of the second."""
    run = tmp_path / "bad"
    shutil.copytree(whole_run, run)
    folders = sorted((run / "checkpoints").iterdir())
    shutil.copy(folders[1] / "model.safetensors", folders[2] / "model.safetensors")
    return run


def one_line(said: Any, *parts: str) -> None:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    for part in parts:
        assert part in said.err


def test_a_sound_run_exits_with_0_and_one_line(hnf: Any, whole_run: Path) -> None:
    said = hnf("check", whole_run)
    assert said.code == 0, said.out
    assert said.out == "17 checks on 4 checkpoints: sound in what was checked\n"
    assert "check 4/4 step 24" in said.err


def test_a_fault_exits_with_1_and_says_step_file_evidence_and_remedy(hnf: Any, bad_run: Path) -> None:
    said = hnf("check", bad_run, "--quiet")
    assert said.code == 1
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0].split() == ["✗", "danger", "step", "18", "identical-weights", "checkpoints/step-000018"]
    assert "steps 12 and 18 hold the same weights" in said.out
    assert "→ copy the checkpoint again" in said.out
    assert lines[-1] == "17 checks on 4 checkpoints: 1 danger"


def test_json_is_one_document_with_every_check(hnf: Any, bad_run: Path) -> None:
    said = hnf("check", bad_run, "--json", "--quiet")
    assert said.code == 1
    document = said.json
    assert document["schema"] == 1
    assert (document["run"], document["checkpoints"], document["sound"]) == ("bad", 4, False)
    assert [one["name"] for one in document["checks"]] == [one.name for one in checks()]
    assert all(one["looked_at"] or one["skipped_because"] for one in document["checks"])
    (fault,) = document["faults"]
    assert {key: fault[key] for key in ("kind", "severity", "step", "path")} == {
        "kind": "identical-weights", "severity": "danger", "step": 18, "path": "checkpoints/step-000018",
    }  # fmt: skip


def test_cheap_reads_no_tensor_and_says_what_it_left_out(
    hnf: Any, bad_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnf_offline.run.formats.load_weights", lambda _: pytest.fail("read tensors"))
    said = hnf("check", bad_run, "--cheap")
    assert said.code == 1
    assert "steps 12 and 18 have the same weight files, byte for byte" in said.out
    assert "not checked: discontinuity" in said.out
    assert "(only cheap checks were asked for)" in said.out


def test_steps_and_every_choose_checkpoints(hnf: Any, bad_run: Path) -> None:
    assert hnf("check", bad_run, "--steps", ":12").code == 0
    halved = hnf("check", bad_run, "--every", 2, "--json").json
    assert halved["checkpoints"] == 2
    # Without the checkpoint it was copied from, the replay still tells that step 18 is wrong.
    assert [(one["kind"], one["step"]) for one in halved["faults"]] == [("replayed-loss", 18)]
    one_line(hnf("check", bad_run, "--steps", "1000:"), "--steps")


def test_a_model_named_on_the_command_line_is_used(hnf: Any, whole_run: Path) -> None:
    shutil.copytree(whole_run, "mine")
    model = json.loads(Path("mine/config.json").read_text())["model"]
    Path("mine/config.json").unlink()
    Path("users_own_model.py").write_text(
        "from hnf_offline.run.model.gpt import GPT, GPTConfig\n"
        f"def build():\n    return GPT(GPTConfig.from_mapping({model!r}))\n"
    )
    lacking = hnf("check", "mine")
    assert lacking.code == 0
    assert "replayed-loss (the run does not say how to build its model)" in lacking.out
    assert "replayed-loss (" not in hnf("check", "mine", "--model", "users_own_model:build").out


def test_a_column_named_on_the_command_line_is_used(hnf: Any, whole_run: Path) -> None:
    shutil.copytree(whole_run, "mine")
    rows = [json.loads(line) for line in Path("mine/log.jsonl").read_text().splitlines()]
    odd = [{"step": row["step"], "value/of/interest": row["loss"], "loss": 9.0} for row in rows]
    Path("mine/log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    assert hnf("check", "mine").code == 1  # the replays do not give 9.0
    assert hnf("check", "mine", "--column", "loss=value/of/interest").code == 0


def test_plan_tells_what_would_be_checked_and_reads_no_tensor(
    hnf: Any, whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for heavy in ("hnf_offline.run.formats.load_weights", "hnf_offline.run.model.build.build_model"):
        monkeypatch.setattr(heavy, lambda *_, **__: pytest.fail("read tensors"))
    said = hnf("check", whole_run, "--plan")
    assert said.code == 0, said.err
    size = sum(file.stat().st_size for file in (whole_run / "checkpoints").rglob("*.safetensors"))
    assert f"read: {size / 2**10:,.0f} KiB of" in said.out
    assert "4 checkpoints of steps 6 to 24" in said.out
    assert "replay: checkpoints 6, 12, 18, 24 on the batches" in said.out
    assert "not checked" not in said.out and "device auto (default)" in said.out
    (plan,) = hnf("check", whole_run, "--plan", "--json").json["plans"]
    assert [one["name"] for one in plan["checks"]] == [one.name for one in checks()]
    assert (plan["read_bytes"], plan["replayed"]) == (size, [6, 12, 18, 24])
    (cheap,) = hnf("check", whole_run, "--plan", "--cheap", "--steps", "12:", "--json").json["plans"]
    assert (cheap["checkpoints"], cheap["steps"], cheap["read_bytes"], cheap["replayed"]) == (
        3,
        [12, 24],
        0,
        [],
    )
    left_out = {one["name"] for one in cheap["checks"] if one["skipped_because"]}
    assert left_out == {one.name for one in checks() if one.cost != "cheap"}
    assert not Path("reports").exists()


def test_what_is_planned_is_what_is_checked(hnf: Any, whole_run: Path) -> None:
    shutil.copytree(whole_run, "mine")
    Path("mine/config.json").unlink()
    (plan,) = hnf("check", "mine", "--plan", "--json").json["plans"]
    planned = {one["name"]: one["skipped_because"] for one in plan["checks"] if one["skipped_because"]}
    done = hnf("check", "mine", "--json").json
    assert planned == {"replayed-loss": "the run does not say how to build its model"}
    assert planned.items() <= {one["name"]: one["skipped_because"] for one in done["checks"]}.items()


def test_tier_weights_runs_no_model(hnf: Any, whole_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole_run, "mine")
    Path("mine/checkpoints/step-000006").rename("mine/checkpoints/step-000000")  # an initial one, by its name
    shifted = hnf("check", "mine", "--json").json
    assert {one["name"]: one["skipped_because"] for one in shifted["checks"]}["initialisation"] == ""
    monkeypatch.setattr("hnf_offline.run.model.build.build_model", lambda *_, **__: pytest.fail("built"))
    monkeypatch.setattr("hnf_offline.profile.session.build_model", lambda *_, **__: pytest.fail("built"))
    told = {one["name"]: one for one in hnf("check", "mine", "--tier", "weights", "--json").json["checks"]}
    assert told["replayed-loss"]["skipped_because"] == "only what weights show was asked for"
    assert "only what weights show was asked for" in told["initialisation"]["skipped_because"]
    assert told["nonfinite-weights"]["looked_at"] == "4 checkpoints"
    one_line(hnf("check", "mine", "--tier", "curvature"), "'weights', 'forward'")


def test_replay_names_other_batches_than_the_runs(hnf: Any, whole_run: Path) -> None:
    shutil.copytree(whole_run, "mine")
    (batches,) = (file for file in Path("mine").iterdir() if "batches" in file.name)
    held = load_file(batches)
    batches.unlink()
    Path("mine/run.toml").unlink()
    assert "replayed-loss (the run has no batches)" in hnf("check", "mine").out
    # All eight rows at every third step; a label in its own place is one longer than the tokens.
    steps = [step for step in range(7, 25, 6) for _ in range(8)]
    rows = held["input_ids"].repeat(3, 1)
    labels = torch.cat((torch.full((len(rows), 1), -100), rows), dim=1)
    save_file({"input_ids": rows, "labels": labels, "steps": torch.tensor(steps)}, "rows.safetensors")
    sound = hnf("check", "mine", "--replay", "rows.safetensors", "--json").json
    assert {one["name"]: one["looked_at"] for one in sound["checks"]}["replayed-loss"] == (
        "3 checkpoints on the batch of their next step"
    )
    assert sound["faults"] == []
    save_file(
        {"input_ids": rows.flip(0).roll(1, 1), "labels": labels, "steps": torch.tensor(steps)},
        "rows.safetensors",
    )
    wrong = hnf("check", "mine", "--replay", "rows.safetensors")
    assert wrong.code == 1 and "replayed-loss" in wrong.out
    one_line(hnf("check", "mine", "--replay", "gone.npz"), "gone.npz", "no such file")
    one_line(hnf("check", "mine", "--replay", "rows.safetensors", "--cheap"), "--cheap")


@pytest.mark.parametrize("arguments", [["nowhere"], ["empty"]])
def test_bad_input_is_one_line(arguments: list[str], hnf: Any) -> None:
    Path("empty").mkdir()
    one_line(hnf("check", *arguments), arguments[0], ";")


def test_nothing_from_a_file_moves_the_cursor(hnf: Any, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "mine")
    folder = Path("mine/checkpoints/step-000018")
    model = json.loads(Path("mine/config.json").read_text())
    model["model"]["\x1b[31mn_head\x1b]0;gone\x07"] = "\x1b[2J"
    (folder / "config.json").write_text(json.dumps(model))
    said = hnf("check", "mine", "--quiet")
    assert said.code == 1
    assert "\x1b" not in said.out
    assert "\x07" not in said.out


def test_report_tells_the_faults_first_and_puts_them_on_the_page(hnf: Any, bad_run: Path) -> None:
    said = hnf("report", bad_run, "--tier", "forward", "--zoom", "off")
    assert said.code == 0, said.err
    told, progress = (
        said.err.index("this series of checkpoints is not sound: 1 danger"),
        said.err.index("profile "),
    )
    assert told < progress
    assert "danger: step 18 checkpoints/step-000018" in said.err
    assert "series not sound: 1 danger" in said.out
    page = Path("reports/bad/index.html").read_text(encoding="utf-8")
    assert '<a href="#series">Series ✗ 1</a>' in page
    assert "steps 12 and 18 have the same weight files, byte for byte" in page
    (fault,) = json.loads(Path("reports/bad/findings.json").read_text())["faults"]
    assert fault["kind"] == "identical-weights"


def test_report_of_a_sound_run_says_so_and_what_it_looked_at(hnf: Any, tiny_run: Path) -> None:
    said = hnf("report", tiny_run, "--tier", "forward", "--zoom", "off")
    assert "not sound" not in said.out + said.err
    page = Path("reports/tiny/index.html").read_text(encoding="utf-8")
    assert '<a href="#series">Series ✓</a>' in page
    assert "identical-weights" in page


def test_quiet_report_says_nothing_of_faults_but_keeps_them(hnf: Any, bad_run: Path) -> None:
    said = hnf("report", bad_run, "--tier", "forward", "--zoom", "off", "--quiet")
    assert said.err == ""
    assert json.loads(Path("reports/bad/findings.json").read_text())["faults"]
