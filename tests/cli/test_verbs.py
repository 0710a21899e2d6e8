"""The verbs as a user runs them, on a small recorded run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ANSI = "\x1b"


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(one.relative_to(folder)): (one.stat().st_size, one.stat().st_mtime_ns)
        for one in folder.rglob("*")
        if one.is_file()
    }


def test_profile_writes_the_table_and_takes_it_from_the_cache_the_second_time(
    hnf: Any, tiny_run: Path
) -> None:
    before = files(tiny_run)
    said = hnf("profile", tiny_run, "--tier", "gradient")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "reports/tiny/profile.parquet"
    table = pl.read_parquet("reports/tiny/profile.parquet")
    assert sorted(set(table["step"])) == [6, 12, 18, 24]
    again = hnf("profile", tiny_run, "--tier", "gradient", "--json")
    assert "4 of 4 from cache" in again.err
    assert again.json["rows"] == len(table)
    assert again.json["checkpoints"] == 4
    assert files(tiny_run) == before


def test_steps_and_every_choose_checkpoints(hnf: Any, tiny_run: Path) -> None:
    assert hnf("profile", tiny_run, "--tier", "forward", "--steps", "12:", "--json").json["checkpoints"] == 3
    assert (
        hnf("profile", tiny_run, "--tier", "forward", "--every", 2, "--out", "b", "--json").json[
            "checkpoints"
        ]
        == 2
    )
    nothing = hnf("profile", tiny_run, "--tier", "forward", "--steps", "1000:", "--out", "c")
    assert nothing.code == 2
    assert "--steps" in nothing.err


def test_layers_chooses_the_layers_with_their_own_curvature(hnf: Any, tiny_run: Path) -> None:
    said = hnf("profile", tiny_run, "--layers", "*mlp*", "--steps", "24:24")
    assert said.code == 0, said.err
    table = pl.read_parquet("reports/tiny/profile.parquet").filter(pl.col("quantity") == "hessian.lambda_max")
    layers = set(table["layer"]) - {""}
    assert layers
    assert all("mlp" in layer for layer in layers)
    assert hnf("profile", tiny_run, "--layers", "nothing*", "--out", "b").code == 2


def test_rows_and_replay_choose_the_data(hnf: Any, tiny_run: Path, other_run: Path) -> None:
    def loss(*options: object) -> float:
        assert hnf("profile", tiny_run, "--tier", "forward", "--steps", "6:6", *options).code == 0
        table = pl.read_parquet("reports/tiny/profile.parquet")
        return float(
            table.filter((pl.col("quantity") == "replay.loss") & (pl.col("layer") == ""))["value"][0]
        )

    assert len({loss(), loss("--rows", 1), loss("--rows", 2)}) == 3
    assert loss("--rows", 2) == loss("--rows", 2, "--replay", tiny_run / "batches.safetensors")


def test_plan_computes_and_writes_nothing(hnf: Any, tiny_run: Path, other_run: Path) -> None:
    for arguments in (
        ("report", tiny_run),
        ("profile", tiny_run),
        ("monitor", tiny_run),
        ("diff", tiny_run, other_run),
    ):
        said = hnf(*arguments, "--plan")
        assert said.code == 0, said.err
        assert "4 checkpoints, 0 of them from cache" in said.out
        assert not Path("reports").exists()
    assert "\n  1 checkpoint, 0 of them" in hnf("profile", tiny_run, "--plan", "--steps", "6:6").out
    document = hnf("profile", tiny_run, "--plan", "--json").json
    assert document["plans"][0]["checkpoints"] == 4
    assert not Path("reports").exists()


def test_report_writes_a_page_and_prints_its_path(hnf: Any, tiny_run: Path) -> None:
    said = hnf("report", tiny_run)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "reports/tiny/index.html"
    assert ANSI not in said.out + said.err
    assert "\r" not in said.err
    page = Path("reports/tiny/index.html").read_text(encoding="utf-8")
    assert "tiny" in page
    assert json.loads(Path("reports/tiny/findings.json").read_text(encoding="utf-8"))["schema"] == 1
    quiet = hnf("report", tiny_run, "--quiet")
    assert quiet.out == "reports/tiny/index.html\n"
    assert quiet.err == ""
    document = hnf("report", tiny_run, "--json").json
    on_disk = json.loads(Path("reports/tiny/findings.json").read_text(encoding="utf-8"))
    assert document == on_disk
    assert document["made"]["versions"]["torch"]
    assert document["made"]["spike_rule"] == "robust"


def test_report_draws_the_map_when_asked(hnf: Any, tiny_run: Path) -> None:
    plain = hnf("report", tiny_run)
    drawn = hnf("report", tiny_run, "--map")
    assert drawn.code == 0, drawn.err
    assert len(drawn.out.splitlines()) > len(plain.out.splitlines()) + 3


def test_report_of_a_log_alone(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "data" / "log.jsonl")
    said = hnf("report", log, "--json")
    assert said.code == 0, said.err
    assert [spike["onset"] for spike in said.json["spikes"]] == [120]
    assert not Path("reports/log.jsonl/profile.parquet").exists()


def test_report_fails_on_a_spike_where_asked(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    spiky = write_log(tmp_path / "data" / "log.jsonl")
    calm = write_log(tmp_path / "calm" / "log.jsonl", spike=None)
    failed = hnf("report", spiky, "--fail-on", "spike", "--json", "--out", "a")
    assert failed.code == 1 and failed.err.count("hnf:") == 0
    assert [spike["onset"] for spike in failed.json["spikes"]] == [120] and Path("a/index.html").exists()
    assert hnf("report", spiky, "--out", "a").code == 0
    assert hnf("report", calm, "--fail-on", "spike", "--out", "b").code == 0


def test_report_explains_one_spike_on_demand(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "data" / "log.jsonl")
    told = hnf("report", str(log), "--explain", "1")
    assert told.code == 0 and "spike 1, onset 120" in told.out and "Cannot say" not in told.out
    assert told.out.rstrip().endswith("index.html")
    missing = hnf("report", str(log), "--explain", "2")
    assert missing.code == 2 and missing.err.splitlines()[-1].startswith("hnf: --explain 2: no such spike")
    assert hnf("report", str(log), "--explain", "1", "--quiet").code == 2


def test_diff_of_two_runs(hnf: Any, tiny_run: Path, other_run: Path) -> None:
    said = hnf("diff", tiny_run, other_run, "--tier", "gradient")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "reports/tiny-vs-other/index.html"
    document = hnf("diff", tiny_run, other_run, "--tier", "gradient", "--json").json
    assert document["verdict"]["word"] == "Differ"
    keys = {one["key"]: (one["a"], one["b"]) for one in document["configuration"]}
    assert keys == {"optimizer.learning_rate": (0.003, 0.03)}
    assert document["weight_distances"]


def test_diff_of_a_run_with_itself_is_the_same(hnf: Any, tiny_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run, copy)
    document = hnf("diff", tiny_run, copy, "--tier", "gradient", "--json").json
    assert document["verdict"]["word"] == "Same"
    assert document["incomparable"] == []
    assert all(one["distance"] == 0 for one in document["weight_distances"])


def test_diff_takes_what_report_has_measured(hnf: Any, tiny_run: Path, other_run: Path) -> None:
    assert hnf("profile", tiny_run, "--tier", "gradient").code == 0
    before = files(Path("reports/tiny"))
    said = hnf("diff", tiny_run, other_run, "--tier", "gradient")
    assert said.err.count("4 of 4 from cache") == 1
    assert files(Path("reports/tiny")) == before


def test_monitor_prints_alarms_in_the_order_in_which_they_were_known(hnf: Any, tiny_run: Path) -> None:
    said = hnf("monitor", tiny_run)
    assert said.code == 0, said.err
    document = hnf("monitor", tiny_run, "--json").json
    known = [alarm["known_at"] for alarm in document["alarms"]]
    assert known == sorted(known)
    assert not Path("reports/tiny/index.html").exists()


def test_a_monitor_that_has_nothing_to_say_says_so(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    run = tmp_path / "calm"
    run.mkdir()
    write_log(run / "log.jsonl", spike=None)
    said = hnf("monitor", run)
    assert (said.code, said.out) == (0, "no alarm and no spike\n"), said.err


def test_spikes_of_a_log(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl")
    said = hnf("spikes", log)
    assert said.code == 0, said.err
    assert "120" in said.out
    (spike,) = hnf("spikes", log, "--json").json["spikes"]
    assert (spike["onset"], spike["end"], spike["kind"]) == (120, 122, "spike")


def test_the_rule_decides_what_a_spike_is(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl")
    document = hnf("spikes", log, "--rule", "mosaic", "--json").json
    assert document["rule"] == "mosaic"
    assert document["spikes"] == []  # two steps are fewer than its patience of four


def test_a_loss_that_becomes_nan_is_a_finding(hnf: Any, write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", spike=None, nan=150)
    said = hnf("spikes", log, "--json")
    assert said.code == 0
    (spike,) = said.json["spikes"]
    assert (spike["onset"], spike["kind"], spike["loss_peak"]) == (150, "nonfinite", None)
    report = hnf("report", log, "--json")
    assert report.code == 0, report.err
    assert report.json["verdict"]["word"] == "Diverged"


def test_spikes_never_imports_torch(write_log: Any, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl")
    program = (
        "import sys\nfrom hnf_offline.cli import main\nassert main(['spikes', sys.argv[1]]) == 0\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(log)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_quantities_lists_and_explains_every_entry(hnf: Any) -> None:
    from hnf_offline.quantities import catalogue

    listed = hnf("quantities").out
    for name, entry in catalogue().items():
        assert name in listed
        told = " ".join(hnf("quantities", name).out.split())
        for part in (entry.formula, entry.reading, entry.cannot, entry.reference):
            assert " ".join(part.split()) in told, name
    tier = hnf("quantities", "--tier", "gradient", "--json").json["quantities"]
    assert {one["tier"] for one in tier} == {"gradient"}


def test_quantities_are_filtered_by_kind_and_source(hnf: Any) -> None:
    def names(*options: str) -> set[str]:
        return {one["name"] for one in hnf("quantities", *options, "--json").json["quantities"]}

    of_weights = names("--kind", "weight")
    assert "weight.stable_rank" in of_weights and "loss.mean" not in of_weights
    assert names("--kind", "softmax") >= {"attention.entropy", "proxy.softmax_log10"}
    assert "attention.entropy" not in names("--kind", "norm")
    assert names("--source", "explosion") >= {"gradient.norm_band", "scaler.simulated_skips"}
    assert names("--source", "2309.14322") >= {"attention.logit_max", "logits.log_z"}
    both = names("--source", "catalogue", "--tier", "weights")
    assert "weight.nuclear_norm" in both and "gradient.norm" not in both
    assert "weight" in hnf("quantities", "--kind", "nothing").err
    assert "profiler" in hnf("quantities", "--source", "nowhere").err


@pytest.mark.parametrize("extra", [{}, {"COLUMNS": "60"}])
def test_pipes_get_no_escapes(extra: dict[str, str], tiny_run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hnf_offline", "report", str(tiny_run), "--tier", "forward", "--map"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | extra,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ANSI not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_what_the_command_line_supplies_is_not_called_missing(hnf: Any, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "mine")
    Path("mine/batches.safetensors").rename("rows.safetensors")
    model = json.loads(Path("mine/config.json").read_text())["model"]
    Path("mine/config.json").unlink()
    Path("users_model.py").write_text(
        "from hnf_offline.run.model.gpt import GPT, GPTConfig\n"
        f"def build():\n    return GPT(GPTConfig.from_mapping({model!r}))\n"
    )
    lacking = hnf("report", "mine", "--tier", "gradient", "--json").json["run"]
    assert {"no model", "no batches"} <= {one["what"] for one in lacking["missing"]}
    told = hnf(
        "report", "mine", "--tier", "gradient", "--json",
        "--model", "users_model:build", "--replay", "rows.safetensors",
    ).json["run"]  # fmt: skip
    assert not {"no model", "no batches"} & {one["what"] for one in told["missing"]}
    assert "users_model:build" in told["model"]
    assert told["parameters"] > 0
