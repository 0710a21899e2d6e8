from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hnf_offline.errors import InputError, UsageError
from hnf_offline.run import open_run
from hnf_offline.run.manifest import read_manifest


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "run.toml").write_text(text)
    return tmp_path


def test_no_manifest_says_nothing(tmp_path: Path) -> None:
    manifest = read_manifest(tmp_path)
    assert manifest.path is None and manifest.optimizer.learning_rate is None


def test_every_key_reaches_its_place(tmp_path: Path) -> None:
    for name in ("m.json", "t.bin", "l.csv", "s.npy"):
        (tmp_path / name).write_text("{}")
    manifest = read_manifest(
        written(
            tmp_path,
            """
[model]
kind = "factory"
factory = "my.models:build"
config = "m.json"
[checkpoints]
glob = "weights/*"
[log]
files = "l.csv"
columns = { loss = "nll" }
[batches]
file = "t.bin"
tokens = "x"
labels = "y"
aligned = true
steps = [1, 1, 2]
length = 8
starts = "s.npy"
[optimizer]
kind = "sgd"
lr = 1
betas = [0.8, 0.9]
eps = 1e-6
momentum = 0.7
nesterov = true
weight_decay = 1
max_grad_norm = 0.5
accumulation = 4
precision = "bfloat16"
[resume]
steps = [30, 10]
""",
        )
    )
    assert (manifest.model_kind, manifest.factory) == ("factory", "my.models:build")
    assert (manifest.model_config, manifest.batch_file) == (tmp_path / "m.json", tmp_path / "t.bin")
    assert (manifest.checkpoint_glob, manifest.log_files) == ("weights/*", (tmp_path / "l.csv",))
    assert (manifest.columns, manifest.batch_steps, manifest.length) == ({"loss": "nll"}, (1, 1, 2), 8)
    assert (manifest.tokens, manifest.labels) == ("x", "y")
    assert manifest.aligned and not manifest.every_step and manifest.starts == tmp_path / "s.npy"
    optimizer = manifest.optimizer
    assert (optimizer.kind, optimizer.learning_rate, optimizer.betas) == ("sgd", 1.0, (0.8, 0.9))
    assert (optimizer.eps, optimizer.momentum, optimizer.nesterov) == (1e-6, 0.7, True)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (1.0, 0.5)
    assert (optimizer.accumulation, optimizer.precision) == (4, "bfloat16")
    assert manifest.resume_steps == (10, 30)


def test_all_rows_can_be_the_batch_of_every_step(tmp_path: Path) -> None:
    manifest = read_manifest(written(tmp_path, '[batches]\nsteps = "all"'))
    assert manifest.every_step and manifest.batch_steps is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[optimiser]\nlr = 1", "did you mean 'optimizer'"),
        ("[optimizer]\nbeta = [0.9, 0.9]", "did you mean 'betas'"),
        ('[model]\nkind = "hff"', "did you mean 'hf'"),
        ('[optimizer]\nlr = "fast"', "not a number"),
        ("[batches]\nsteps = 0", "rows a step"),
        ('[batches]\nsteps = "every"', 'or "all"'),
        ("[batches]\naligned = 1", "not true or false"),
        ('[model]\nkind = "factory"', "needs a factory"),
        ("[model]\nsettings = 3", "model.settings"),
        ('[model]\nconfig = "c.json"\n[model.settings]\nn_layer = 2', "both config and settings"),
        ("[optimizer]\naccumulation = 0", "above 0"),
        ('[optimizer]\nprecision = "float64"', "did you mean 'float16'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        read_manifest(written(tmp_path, text))


@pytest.mark.parametrize("name", ["../outside.jsonl", "/etc/hostname", "link.jsonl"])
def test_paths_stay_inside_the_run(tmp_path: Path, name: str, make: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    make.log(tmp_path / "outside.jsonl", 5)
    (run / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(InputError, match="outside of"):
        read_manifest(written(run, f'[log]\nfiles = ["{name}"]'))


def test_a_glob_stays_inside_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outside of the run"):
        read_manifest(written(tmp_path, '[checkpoints]\nglob = "../*"'))


def test_a_broken_manifest_is_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not TOML"):
        read_manifest(written(tmp_path, "[model"))


def test_the_glob_chooses_the_checkpoints(tmp_path: Path, make: Any) -> None:
    make.weights(tmp_path / "good" / "step-5")
    make.weights(tmp_path / "bad" / "step-6")
    written(tmp_path, '[checkpoints]\nglob = "good/*"\n[resume]\nsteps = [3]')
    run = open_run(tmp_path)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [5]
    assert run.resume_steps == (3,)


def test_another_manifest_speaks_of_the_run(tmp_path: Path, make: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    make.log(run / "a.jsonl", 30)
    make.log(run / "b.jsonl", 30)
    other = tmp_path / "other.toml"
    other.write_text('[log]\nfiles = ["a.jsonl"]\n[optimizer]\nlr = 0.5')
    opened = open_run(run, other)
    assert opened.log is not None and opened.log.files == (run / "a.jsonl",)
    assert opened.optimizer.learning_rate == 0.5


def test_a_manifest_the_user_names_may_lie_and_lead_outside(tmp_path: Path, make: Any) -> None:
    run, own = tmp_path / "run", tmp_path / "own"
    run.mkdir()
    own.mkdir()
    make.log(run / "a.jsonl", 30)
    make.log(run / "b.jsonl", 30)
    make.log(own / "b.jsonl", 20)
    make.log(tmp_path / "c.jsonl", 10)
    for name, found in (
        ("a.jsonl", run / "a.jsonl"),  # only in the run
        ("b.jsonl", own / "b.jsonl"),  # beside the manifest first
        ("../c.jsonl", own / "../c.jsonl"),
        (str(tmp_path / "c.jsonl"), tmp_path / "c.jsonl"),
    ):
        (own / "mine.toml").write_text(f'[log]\nfiles = ["{name}"]')
        assert read_manifest(run, own / "mine.toml").log_files == (found,)
    (own / "mine.toml").write_text('[log]\nfiles = ["none.jsonl"]')
    with pytest.raises(InputError, match=r"'none.jsonl'.*own and .*run") as caught:
        read_manifest(run, own / "mine.toml")
    assert caught.value.remedy


def test_a_link_out_of_the_run_stays_shut_for_its_own_manifest(tmp_path: Path, make: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "train.bin").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="outside of"):
        read_manifest(written(run, '[batches]\nfile = "../train.bin"\nlength = 4'))


SIZES = "n_layer = 1\nn_head = 1\nn_embd = 4\nblock_size = 3\nvocab_size = 7"


def test_the_model_can_be_described_in_the_manifest(tmp_path: Path, make: Any) -> None:
    make.weights(tmp_path / "step-5")
    run = open_run(written(tmp_path, f'[model]\nkind = "gpt"\n[model.settings]\n{SIZES}\nbias = false'))
    assert run.model is not None and run.model.kind == "gpt"
    assert run.model.config["bias"] is False and run.model.config["block_size"] == 3
    assert run.model.config_file == tmp_path / "run.toml"
    run = open_run(written(tmp_path, '[model.settings]\nmodel_type = "llama"\nhidden_size = 8'))
    assert run.model is not None and run.model.kind == "hf" and run.model.config["hidden_size"] == 8
    with pytest.raises(InputError, match="do not say what they describe"):
        open_run(written(tmp_path, f"[model.settings]\n{SIZES}"))
