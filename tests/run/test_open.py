from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hnf_offline.errors import InputError
from hnf_offline.run import load_optimizer, load_rows, match_optimizer, open_run
from hnf_offline.run.configuration import full_configuration


def test_a_recorded_run_is_found_whole(recording: Path) -> None:
    run = open_run(recording)
    assert run.name == "recorded"
    assert run.path == recording
    assert [checkpoint.step for checkpoint in run.checkpoints] == [10, 20]
    assert run.gap == 10
    assert run.log is not None and run.log.rows.height == 20
    assert run.model is not None and (run.model.kind, run.model.config["n_embd"]) == ("gpt", 4)
    assert run.batches is not None and list(run.batches.rows_of_step(2)) == [2, 3]
    assert run.configuration["optimizer.learning_rate"] == 0.01
    assert run.configuration["optimizer.betas"] == [0.9, 0.99]
    assert run.configuration["training.seed"] == 3
    assert [missing.what for missing in run.missing] == [
        "no optimizer state in 1 of 2 checkpoints",
        "no gradient norm in the log",
        "no learning rate in the log",
    ]
    assert run.skipped == ()


def test_recorded_optimizer_state_is_matched_by_name(recording: Path, make: Any) -> None:
    run = open_run(recording)
    raw = load_optimizer(run.checkpoints[1])
    assert raw is not None and raw.names
    shapes = [(name, tuple(p.shape)) for name, p in make.module().named_parameters()]
    state = match_optimizer(raw, shapes, run.optimizer, run.checkpoints[1].path)
    assert state.kind == "adamw"
    weight = state.parameters["2.weight"]
    assert (weight.learning_rate, weight.beta2, weight.weight_decay, weight.step) == (0.02, 0.99, 0.1, 20)
    torch.testing.assert_close(weight.second_moment(), torch.full((2, 5), 0.5 / (1 - 0.99**20)))
    assert load_optimizer(run.checkpoints[0]) is None


def test_one_checkpoint_of_a_recorded_run_knows_its_model(recording: Path) -> None:
    run = open_run(recording / "checkpoints" / "step-000020")
    assert [checkpoint.step for checkpoint in run.checkpoints] == [20]
    assert run.model is not None and run.model.kind == "gpt"
    assert any(missing.what == "no log" for missing in run.missing)


def test_opening_a_run_needs_no_torch(recording: Path) -> None:
    code = (
        "import sys, hnf_offline.run\n"
        "assert 'torch' not in sys.modules and 'polars' not in sys.modules\n"
        f"run = hnf_offline.run.open_run({str(recording)!r})\n"
        "assert len(run.checkpoints) == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_damaged_checkpoint_is_passed_over_and_named(recording: Path) -> None:
    broken = recording / "checkpoints" / "step-000010" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-40])
    run = open_run(recording)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [20]
    assert [(skipped.path, "truncated" in skipped.reason) for skipped in run.skipped] == [(broken, True)]


def test_if_all_checkpoints_are_damaged_the_log_still_opens(recording: Path) -> None:
    for weights in recording.rglob("model.safetensors"):
        weights.write_bytes(b"\xff" * 64)
    run = open_run(recording)
    assert run.checkpoints == () and len(run.skipped) == 2
    (recording / "log.jsonl").unlink()
    with pytest.raises(InputError, match=r"step-000010.*header") as caught:
        open_run(recording)
    assert caught.value.remedy


def test_a_log_file_alone_is_a_run(tmp_path: Path, make: Any) -> None:
    run = open_run(make.log(tmp_path / "history.jsonl", 5))
    assert run.log is not None and run.log.rows["step"].to_list() == [1, 2, 3, 4, 5]
    assert run.checkpoints == () and run.missing[0].what == "no checkpoint"


def test_nothing_to_read_says_what_to_do(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError) as caught:
            open_run(path)
        assert caught.value.remedy and caught.value.path == path


def test_logs_of_several_runs_are_not_mixed(tmp_path: Path, make: Any) -> None:
    make.log(tmp_path / "a.jsonl", 30)
    other = make.log(tmp_path / "b.jsonl", 30)
    other.write_text(other.read_text().replace('"loss": ', '"loss": 1'))
    with pytest.raises(InputError, match=r"2 logs of the same steps: a\.jsonl, b\.jsonl"):
        open_run(tmp_path)
    (tmp_path / "run.toml").write_text('[log]\nfiles = ["b.jsonl"]\n')
    run = open_run(tmp_path)
    assert run.log is not None and run.log.files == (tmp_path / "b.jsonl",)


def test_the_final_model_beside_checkpoints_is_not_step_zero(tmp_path: Path, make: Any) -> None:
    make.weights(tmp_path / "checkpoint-9")
    make.weights(tmp_path / "checkpoint-10")
    make.weights(tmp_path)
    run = open_run(tmp_path)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [9, 10]
    assert run.skipped[0].path == tmp_path


def test_a_checkpoint_of_an_unknown_layout_is_reported(tmp_path: Path, make: Any) -> None:
    make.log(tmp_path / "log.jsonl", 5)
    (tmp_path / "step-20").mkdir()
    (tmp_path / "step-20" / "mp_rank_00.pth").write_bytes(b"x")
    run = open_run(tmp_path)
    assert [skipped.path for skipped in run.skipped] == [tmp_path / "step-20"]


def test_configuration_with_an_optimizer_file(tmp_path: Path, make: Any) -> None:
    module = make.module()
    folder = make.weights(tmp_path / "checkpoint-3", module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.3, weight_decay=0.2)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"max_steps": 7, "log_history": []}))
    run = open_run(tmp_path)
    assert run.configuration == {"training.max_steps": 7}
    full = full_configuration(run)
    assert (full["optimizer.learning_rate"], full["optimizer.weight_decay"]) == (0.3, 0.2)


@pytest.mark.real
def test_the_trainer_run(data: Path) -> None:
    run = open_run(data / "runs" / "hf_trainer_llama_spike")
    assert [checkpoint.step for checkpoint in run.checkpoints] == list(range(10, 301, 10))
    saved = [checkpoint.step for checkpoint in run.checkpoints if checkpoint.optimizer_files]
    assert saved == [50, 100, 130, 140, 150, 160, 170, 200, 210, 220, 230, 250, 300]
    assert run.model is not None and run.model.kind == "hf"
    assert run.log is not None
    loss = dict(zip(run.log.rows["step"], run.log.rows["loss"], strict=True))
    assert (round(loss[152], 2), round(loss[220], 2)) == (6.28, 10.86)
    assert run.batches is not None and run.batches.rows_per_step == 16
    import numpy as np

    rows = run.batches.rows_of_step(151)
    tokens, labels = load_rows(run.batches, rows)
    assert labels is None and tokens.dtype == torch.int64
    assert np.array_equal(tokens, np.load(run.batches.path)["tokens"][150 * 16 : 151 * 16])


@pytest.mark.real
def test_shards_are_the_same_weights(data: Path) -> None:
    from hnf_offline.run import load_weights

    whole = open_run(data / "runs" / "hf_trainer_llama_spike" / "checkpoint-300").checkpoints[0]
    shards = open_run(data / "runs" / "hf_sharded_safetensors").checkpoints[0]
    expected, weights = load_weights(whole), load_weights(shards)
    assert set(weights) == set(expected) and len(weights) == 38
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.real
def test_a_missing_shard_is_named(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(data / "runs" / "hf_sharded_safetensors", copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    (copy / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00003-of-00004\.safetensors, which is not there"):
        open_run(copy)


@pytest.mark.real
def test_a_distributed_run_without_a_manifest_lacks_only_its_batches(data: Path) -> None:
    run = open_run(data / "runs" / "dcp_fsdp2_nanogpt")
    assert run.log is not None and round(dict(run.log.rows.select("step", "loss").iter_rows())[78], 2) == 3.99
    assert len(run.checkpoints) == 6 and run.skipped == ()
    assert run.model is not None and (run.model.kind, run.model.config["bias"]) == ("gpt", False)
    assert [missing.what for missing in run.missing] == ["no batches"]


SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 3, "vocab_size": 7}


@pytest.mark.parametrize("name", ["config.json", "RUN.json"])
def test_five_sizes_beside_the_checkpoints_are_a_nanogpt_model(tmp_path: Path, make: Any, name: str) -> None:
    make.weights(tmp_path / "step-5")
    (tmp_path / name).write_text(json.dumps({**SIZES, "dropout": 0.1, "note": "mine"}))
    run = open_run(tmp_path)
    assert run.model is not None and run.model.kind == "gpt"
    assert run.model.config.items() >= {"norm": "pre", "dropout": 0.1, **SIZES}.items()
    assert run.model.config_file == tmp_path / name
    for key in SIZES:
        # Four of them, or words for numbers, describe nobody knows what.
        (tmp_path / name).write_text(json.dumps({**SIZES, key: "7"}))
        assert open_run(tmp_path).model is None


def test_sizes_in_a_recording_are_the_users_own_words(recording: Path) -> None:
    config = json.loads((recording / "config.json").read_text())
    del config["model"]["model_type"]
    (recording / "config.json").write_text(json.dumps(config))
    assert open_run(recording).model is None


def test_a_recorded_full_batch_is_the_batch_of_every_step(recording: Path) -> None:
    config = json.loads((recording / "config.json").read_text())
    config["training"]["batch"] = "full"
    (recording / "config.json").write_text(json.dumps(config))
    tokens = torch.ones(6, 3, dtype=torch.int32)
    save_file({"input_ids": tokens}, recording / "batches.safetensors")
    run = open_run(recording)
    assert run.batches is not None and list(run.batches.rows_of_step(13)) == list(range(6))
    (recording / "run.toml").write_text("[batches]\nsteps = 2")
    assert list(open_run(recording).batches.rows_of_step(2)) == [2, 3]
    (recording / "run.toml").unlink()
    del config["format"]
    (recording / "config.json").write_text(json.dumps(config))
    batches = open_run(recording).batches
    assert batches is not None and not batches.every_step
