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
    for name in ("m.json", "t.bin", "l.csv"):
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
steps = [1, 1, 2]
length = 8
[optimizer]
kind = "sgd"
lr = 1
betas = [0.8, 0.9]
eps = 1e-6
momentum = 0.7
nesterov = true
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
    optimizer = manifest.optimizer
    assert (optimizer.kind, optimizer.learning_rate, optimizer.betas) == ("sgd", 1.0, (0.8, 0.9))
    assert (optimizer.eps, optimizer.momentum, optimizer.nesterov) == (1e-6, 0.7, True)
    assert manifest.resume_steps == (10, 30)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[optimiser]\nlr = 1", "did you mean 'optimizer'"),
        ("[optimizer]\nbeta = [0.9, 0.9]", "did you mean 'betas'"),
        ('[model]\nkind = "hff"', "did you mean 'hf'"),
        ('[optimizer]\nlr = "fast"', "not a number"),
        ("[batches]\nsteps = 0", "rows a step"),
        ('[model]\nkind = "factory"', "needs a factory"),
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
