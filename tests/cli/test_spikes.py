"""`hnf spikes` as a user calls it: table, document, picture, and nothing written where it must not be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SAMPLES = Path(__file__).resolve().parents[2] / "sample_runs"


def test_the_document_tells_the_log_its_spikes_and_its_events(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl", nan=190)
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:60], "{broken", *lines[50:]]) + "\n")
    document = hnf("spikes", log, "--json").json
    assert set(document) == {
        "schema",
        "rule",
        "log",
        "spikes",
        "events",
        "highest",
        "skipped",
        "curve",
        "precision",
    }
    assert document["schema"] == 1
    told = document["log"]
    assert (told["rows"], told["losses"], told["steps"]) == (200, 200, [1, 200])
    assert (told["duplicates"], told["skipped_lines"], told["restarts"]) == (10, 1, [51])
    assert (told["files"], told["formats"]) == (["log.jsonl"], ["jsonl"])
    assert told["columns"]["loss"] == "loss"
    assert [segment["steps"] for segment in told["segments"]] == [[1, 60], [51, 200]]
    assert [spike["onset"] for spike in document["spikes"]] == [120, 190]
    assert {event["kind"] for event in document["events"]} == {"duplicated-log", "restart", "nonfinite-loss"}


def test_the_table_tells_the_same_in_words(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl", nan=190)
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:60], "{broken", *lines[50:]]) + "\n")
    said = hnf("spikes", log).out
    assert "log.jsonl: 200 rows of steps 1 to 200 (jsonl)" in said
    assert "danger" in said
    assert "nonfinite-loss" in said
    assert "190-200" in said
    assert "1 line of the log could not be read" in said
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize("columns", ["60", "200"])
def test_narrow_and_wide_terminals_get_a_readable_table(hnf, write_log, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    said = hnf("spikes", write_log(tmp_path / "log.jsonl", spike=None, nan=150)).out
    events = said[said.index("danger") :]
    assert max(map(len, events.splitlines())) <= int(columns)


def test_without_a_spike_the_highest_row_is_named(hnf, write_log, tmp_path):
    said = hnf("spikes", write_log(tmp_path / "log.jsonl", spike=None)).out
    assert "no loss spike found" in said
    assert "highest row" in said
    assert "no spike by the rule robust" in " ".join(said.split())


def test_out_writes_a_picture_and_the_document_and_only_those(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    said = hnf("spikes", log, "--out", "found")
    assert said.code == 0, said.err
    assert sorted(file.name for file in Path("found").iterdir()) == ["spikes.json", "spikes.png"]
    assert said.out.splitlines()[-2:] == [str(Path("found/spikes.png")), str(Path("found/spikes.json"))]
    assert json.loads(Path("found/spikes.json").read_text()) == hnf("spikes", log, "--json").json
    assert Path("found/spikes.png").read_bytes().startswith(b"\x89PNG")
    first = Path("found/spikes.png").read_bytes()
    assert hnf("spikes", log, "--out", "found").code == 0  # again, over its own files
    assert Path("found/spikes.png").read_bytes() == first


def test_nothing_is_written_without_out(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    hnf("spikes", log)
    hnf("spikes", log, "--json")
    assert list(Path().iterdir()) == []
    assert [file.name for file in tmp_path.iterdir() if file.name != "here"] == ["log.jsonl"]


def test_files_of_others_are_left_alone(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    Path("mine").mkdir()
    Path("mine/spikes.txt").write_text("mine")
    said = hnf("spikes", log, "--out", "mine")
    assert said.code == 2
    assert "spikes.txt" in said.err
    assert [file.name for file in Path("mine").iterdir()] == ["spikes.txt"]
    assert hnf("spikes", log, "--out", "mine", "--force").code == 0
    assert Path("mine/spikes.txt").read_text() == "mine"


def test_a_report_keeps_its_figures_when_spikes_are_written_beside_it(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    assert hnf("report", log, "--out", "report").code == 0
    before = {file: file.read_bytes() for file in Path("report").rglob("*") if file.is_file()}
    assert hnf("spikes", log, "--out", "report").code == 0
    assert all(file.read_bytes() == content for file, content in before.items())
    other = write_log(tmp_path / "other.jsonl")
    said = hnf("spikes", other, "--out", "report")
    assert said.code == 2
    assert "another run" in said.err


def test_nothing_is_written_inside_a_run(hnf, write_log, tmp_path):
    write_log(tmp_path / "run" / "log.jsonl")
    said = hnf("spikes", tmp_path / "run", "--out", tmp_path / "run" / "found")
    assert said.code == 2
    assert "never written inside a run" in said.err
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_control_characters_of_a_log_reach_no_terminal(hnf, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": i, "\x1b[31mtrain/loss": 2.0}) + "\n" for i in range(30)))
    said = hnf("spikes", log, "--column", "loss=\x1b[31mtrain/loss")
    assert said.code == 0, said.err
    assert "\x1b" not in said.out
    assert "loss = train/loss" in said.out


@pytest.mark.parametrize(
    "rows, onsets",
    [
        ([{"step": 5, "loss": 2.0}], []),
        ([{"step": i, "loss": 2.0} for i in range(50)], []),
        (
            [{"step": 50 * i, "loss": -5.0 + (4 if i == 40 else 0) + 0.01 * (i % 3)} for i in range(60)],
            [2000],
        ),
        ([{"step": 25 * i, "loss": 2.0 * (3 if i == 40 else 1) + 0.01 * (i % 3)} for i in range(60)], [1000]),
        ([{"step": i, "loss": float("nan")} for i in range(20)], [0]),
    ],
)
def test_odd_logs_are_told_of(hnf, tmp_path, rows, onsets):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = hnf("spikes", log, "--json").json
    assert [spike["onset"] for spike in document["spikes"]] == onsets
    said = hnf("spikes", log, "--out", "found")
    assert said.code == 0, said.err


def test_a_log_of_evaluations_alone_is_refused_with_a_remedy(hnf, tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(json.dumps({"step": 100 * i, "eval_loss": 3.0 - 0.01 * i}) + "\n" for i in range(20))
    )
    said = hnf("spikes", log)
    assert said.code == 2
    assert "has no loss column" in said.err
    assert hnf("spikes", log, "--column", "loss=eval_loss").code == 0


def loaded_by_spikes(path: Path) -> list[str]:
    program = (
        "import sys\nfrom hnf_offline.cli import main\nassert main(['spikes', sys.argv[1]]) == 0\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_run_with_checkpoints_loads_no_torch_either():
    said = loaded_by_spikes(SAMPLES / "spiky")
    assert said[-1] == "[]"
    assert any("917" in line for line in said)


@pytest.mark.real
@pytest.mark.parametrize("run", ["hf_trainer_llama_spike", "dcp_fsdp2_nanogpt"])
def test_real_runs_load_no_torch_either(run):
    if not (DATA / "runs" / run).is_dir():
        pytest.skip("absent")
    assert loaded_by_spikes(DATA / "runs" / run)[-1] == "[]"


def test_the_trainers_state_in_the_last_checkpoint_is_found(hnf, tmp_path):
    for step in (50, 100, 9):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        history = [{"step": i, "loss": 9.0 if i == 80 else 2.0 + 0.01 * (i % 3)} for i in range(1, step + 1)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": step}))
    document = hnf("spikes", tmp_path / "run", "--json").json
    assert document["log"]["steps"] == [1, 100]
    assert [spike["onset"] for spike in document["spikes"]] == [80]
    assert document["log"]["files"] == [str(Path("checkpoint-100/trainer_state.json"))]


def test_a_run_toml_names_the_log_and_its_resumes(hnf, write_log, tmp_path):
    write_log(tmp_path / "run" / "odd.name.jsonl")
    toml = '[log]\nfiles = ["odd.name.jsonl"]\n[resume]\nsteps = [119]\n'
    (tmp_path / "run" / "run.toml").write_text(toml)
    (spike,) = hnf("spikes", tmp_path / "run", "--json").json["spikes"]
    assert spike["at_resume"]


def test_a_folder_without_a_log_says_what_to_do(hnf, tmp_path):
    (tmp_path / "run").mkdir()
    said = hnf("spikes", tmp_path / "run")
    assert said.code == 2
    assert "has no training log that can be read; name the log file itself" in said.err


def test_rows_written_again_with_another_loss_are_counted(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl", spike=None)
    lines = log.read_text().splitlines()
    again = [
        json.dumps({**json.loads(line), "loss": 2.9 + 0.001 * place})
        for place, line in enumerate(lines[50:54])
    ]
    log.write_text("\n".join([*lines[:60], *again, *lines[54:]]) + "\n")
    document = hnf("spikes", log, "--json").json
    assert (document["log"]["duplicates"], document["log"]["disagreeing"]) == (10, 4)
    (event,) = (event for event in document["events"] if event["kind"] == "duplicated-log")
    assert "4 of them with another loss" in event["evidence"]


def test_a_report_of_a_slow_climb_says_diverged(hnf, tmp_path):
    log = tmp_path / "log.jsonl"
    losses = [2 + 3 * 0.99**i + max(0, i - 500) * 0.005 for i in range(1000)]
    log.write_text("".join(json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(losses)))
    verdict = hnf("report", log, "--json").json["verdict"]
    assert verdict["word"] == "Diverged"
    assert "climbed from 2" in verdict["sentence"]


def test_a_target_and_a_loss_scaler_of_ones_own_are_told(hnf, tmp_path):
    rows = [
        {"step": step, "loss": 4 - step / 100, "grad_max": 1000.0 if step == 50 else 1e-3, "grad_norm": 1.0}
        for step in range(1, 201)
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    document = hnf("spikes", log, "--target", "3", "--scaler", "512,2,10", "--json").json
    assert document["curve"]["target"]["step"] == 110  # the median of twenty rows comes ten rows later
    mine = document["precision"]["simulated"][-1]
    assert (mine["initial"], mine["growth"], mine["interval"]) == (512, 2, 10)
    # Step 50 overflows at 8192. From 4096 it doubles every ten steps; 4096 * 2^14 is above 65520 / .001 at step 191.
    assert mine["skipped_if_unknown_is_clean"] == mine["skipped_if_unknown_overflows"] == 2
    said = hnf("spikes", log, "--target", "3", "--scaler", "512,2,10").out
    assert "target: loss 3.00 reached at step 110" in said
    assert "scaler 512,2.00,10: would skip 2 of 200 updates" in said
    assert "100.0% .5-5" in said


@pytest.mark.parametrize("text", ["512", "512,1,10", "512,2,0", "0,2,10", "a,2,10"])
def test_a_scaler_that_is_none_is_refused(hnf, write_log, tmp_path, text):
    said = hnf("spikes", write_log(tmp_path / "log.jsonl"), "--scaler", text)
    assert said.code == 2 and f"--scaler {text}" in said.err and "1024,1.5,200" in said.err


def test_steps_and_every_choose_rows(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl", nan=190)
    late = hnf("spikes", log, "--steps", "100:150", "--json").json
    assert (late["log"]["rows"], late["log"]["steps"]) == (51, [100, 150])
    assert [spike["onset"] for spike in late["spikes"]] == [120]
    assert late["log"]["notes"] == ["looked at only from step 100 to step 150"]
    assert [spike["onset"] for spike in hnf("spikes", log, "--steps", "150:", "--json").json["spikes"]] == [
        190
    ]
    assert hnf("spikes", log, "--steps", ":110", "--json").json["spikes"] == []
    halved = hnf("spikes", log, "--every", 2, "--json").json
    assert (halved["log"]["rows"], halved["log"]["steps"]) == (100, [1, 199])
    assert [spike["onset"] for spike in halved["spikes"]] == [121, 191]
    assert "looked at only one row in 2" in hnf("spikes", log, "--every", 2).out
    nothing = hnf("spikes", log, "--steps", "500:")
    assert nothing.code == 2 and nothing.err.count("\n") == 1
    assert "its steps are 1 to 200" in nothing.err


def test_every_counts_rows_that_have_a_loss(hnf, tmp_path):
    # An evaluation behind every loss: every second row of the file would be evaluations alone.
    rows = [{"step": 2 * i, "loss": 2 + 0.01 * (i % 3)} for i in range(40)]
    rows += [{"step": 2 * i + 1, "eval_loss": 2.0} for i in range(40)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["step"])))
    told = hnf("spikes", log, "--every", 2, "--json").json["log"]
    assert (told["losses"], told["rows"]) == (20, 60)


def test_restarts_outside_of_the_chosen_steps_are_not_told(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:60], *lines[50:]]) + "\n")
    assert hnf("spikes", log, "--json").json["log"]["restarts"] == [51]
    assert hnf("spikes", log, "--steps", "100:", "--json").json["log"]["restarts"] == []


def test_a_run_toml_that_chooses_checkpoints_chooses_no_rows(hnf, write_log, tmp_path):
    write_log(tmp_path / "run" / "log.jsonl")
    (tmp_path / "run" / "run.toml").write_text('[analysis]\nsteps = "150:"\nevery = 5\n')
    assert hnf("spikes", tmp_path / "run", "--json").json["log"]["rows"] == 200
    told = hnf("spikes", tmp_path / "run", "--plan").out
    assert "steps all (default)" in told and "every 1 (default)" in told


def test_a_plan_tells_rows_and_columns_and_writes_nothing(hnf, write_log, tmp_path, monkeypatch):
    log = write_log(tmp_path / "log.jsonl")
    monkeypatch.setattr("hnf_offline.relate.log_alone.find_spikes", lambda *_, **__: pytest.fail("looked"))
    said = hnf("spikes", log, "--plan", "--out", "found", "--steps", "11:")
    assert said.code == 0 and "log.jsonl -> found" in said.out and "rows: 190" in said.out
    assert "steps 11: (option)" in said.out and "loss = loss" in said.out
    assert "nothing is written without --out" in hnf("spikes", log, "--plan").out
    (plan,) = hnf("spikes", log, "--plan", "--json").json["plans"]
    assert (plan["rows"], plan["losses"], plan["steps"], plan["out"]) == (200, 200, "1 to 200", None)
    assert list(Path().iterdir()) == []


def test_quiet_prints_only_what_was_written(hnf, write_log, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    assert hnf("spikes", log, "--out", "found", "--quiet").out.splitlines() == [
        str(Path("found/spikes.png")), str(Path("found/spikes.json")),
    ]  # fmt: skip
    silent = hnf("spikes", log, "-q")
    assert (silent.code, silent.out, silent.err) == (0, "", "")
