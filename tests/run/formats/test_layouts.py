from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hnf_offline.errors import InputError, UnsafeFileError
from hnf_offline.run.formats import configuration, find, load_optimizer, load_weights
from hnf_offline.run.formats.names import step_in_name
from hnf_offline.run.formats.safetensors_file import holds_weights, read_header


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-100", 100),
        ("step-000352", 352),
        ("step_7", 7),
        ("step100", 100),
        ("global_step20", 20),
        ("iter_0001000", 1000),
        ("epoch=0-step=20", 20),
        ("352", 352),
        ("model-00001-of-00004", None),
        ("final", None),
        ("llama-7b", None),
        ("run-3", None),
        ("stepwise", None),
        ("step10k", None),
    ],
)
def test_steps_in_names(name: str, step: int | None) -> None:
    assert step_in_name(name) == step


def test_steps_sort_as_numbers(tmp_path: Path, make: Any) -> None:
    for step in (100, 9, 10):
        make.weights(tmp_path / "checkpoints" / f"step{step}")
    make.weights(tmp_path / "checkpoints" / "352")
    assert [checkpoint.step for checkpoint in find(tmp_path)[0]] == [9, 10, 100, 352]


def test_of_one_step_the_fuller_checkpoint_is_kept(tmp_path: Path, make: Any) -> None:
    make.weights(tmp_path / "a" / "step-5")
    fuller = make.weights(tmp_path / "b" / "step-5")
    save_file({"exp_avg.w": torch.ones(1)}, fuller / "optimizer.safetensors")
    checkpoints, skipped = find(tmp_path)
    assert [checkpoint.path for checkpoint in checkpoints] == [fuller]
    assert skipped[0].path == tmp_path / "a" / "step-5" and "step 5" in skipped[0].reason


@pytest.mark.parametrize(
    ("name", "weights"),
    [("model", True), ("pytorch_weights", True), ("random_states", False), ("random_states_0", False),
     ("optimizer", False), ("batches", False)],
)  # fmt: skip
def test_what_lies_beside_weights_is_not_taken_for_weights(name: str, weights: bool, tmp_path: Path) -> None:
    assert holds_weights(Path(f"{name}.safetensors")) is weights
    save_file({"w": torch.ones(2)}, tmp_path / "step-5.safetensors")
    save_file({"cpu": torch.ones(2)}, tmp_path / "random_states_7.safetensors")
    assert [checkpoint.step for checkpoint in find(tmp_path)[0]] == [5]


def test_links_to_a_checkpoint_are_the_checkpoint(tmp_path: Path, make: Any) -> None:
    real = make.weights(tmp_path / "step-5")
    (tmp_path / "step-6").symlink_to(real)
    (tmp_path / "loop").symlink_to(tmp_path)
    checkpoints, _ = find(tmp_path)
    assert [checkpoint.path for checkpoint in checkpoints] == [real]


def test_loose_files_with_their_optimizer(tmp_path: Path, make: Any) -> None:
    state = make.module().state_dict()
    save_file(state, tmp_path / "step_100.safetensors")
    save_file({"exp_avg.0.weight": torch.ones(5, 3)}, tmp_path / "step_100.optimizer.safetensors")
    checkpoints, skipped = find(tmp_path)
    assert [c.step for c in checkpoints] == [100] and skipped == []
    weights = load_weights(checkpoints[0])
    assert all(torch.equal(weights[name], state[name]) for name in state)
    raw = load_optimizer(checkpoints[0])
    assert raw is not None and raw.state["0.weight"]["exp_avg"].shape == (5, 3)


def test_trainer_checkpoint_with_both_files(tmp_path: Path, make: Any) -> None:
    module = make.module().to(torch.bfloat16)
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    checkpoint = find(tmp_path)[0][0]
    assert (checkpoint.layout, len(checkpoint.files)) == ("hf_trainer", 2)
    weights = load_weights(checkpoint)
    assert weights["0.weight"].dtype == torch.bfloat16
    assert torch.equal(weights["0.weight"], module.state_dict()["0.weight"])
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.groups[0]["lr"] == 0.1


@pytest.mark.parametrize("zipped", [True, False])
def test_nanogpt(tmp_path: Path, make: Any, zipped: bool) -> None:
    module = make.module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=6e-4)
    make.train(module, optimizer)
    content = {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in module.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": {
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 8,
            "block_size": 4,
            "vocab_size": 9,
            "bias": False,
        },
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"learning_rate": 6e-4, "dataset": "chars"},
    }
    torch.save(content, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=zipped)
    (checkpoint,), skipped = find(tmp_path)
    assert checkpoint.step == 250 and skipped == []
    assert set(load_weights(checkpoint)) == set(module.state_dict())
    raw = load_optimizer(checkpoint)
    assert raw is not None and raw.groups[0]["lr"] == 6e-4 and not raw.names
    sections = configuration(checkpoint)
    assert sections["model"]["model_type"] == "gpt" and sections["model"]["norm"] == "pre"
    assert sections["training"]["dataset"] == "chars"


class Trap:
    """A pickle that would create a file if it were ever run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_weights_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    weights = folder / "pytorch_model.bin"
    torch.save({"w": torch.ones(2), "x": Trap(canary)}, weights, _use_new_zipfile_serialization=zipped)
    checkpoint = find(tmp_path)[0][0]
    with pytest.raises(UnsafeFileError) as caught:
        load_weights(checkpoint)
    assert caught.value.path == weights
    assert caught.value.remedy is not None and "safetensors" in caught.value.remedy
    assert not canary.exists()


def test_code_in_a_nanogpt_file_is_skipped_and_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"model": {"w": torch.ones(2)}, "iter_num": 3, "x": Trap(canary)}, tmp_path / "ckpt.pt")
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "code from the file" in skipped[0].reason
    assert not canary.exists()


def test_the_conversion_line_works(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    saved = {"model": {"w": torch.arange(4.0)}, "args": argparse.Namespace(lr=1)}
    torch.save(saved, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError) as caught:
        load_weights(find(tmp_path)[0][0])
    assert caught.value.remedy is not None
    line = caught.value.remedy.split("python -c ", 1)[1].strip('"')
    subprocess.run([sys.executable, "-c", line], cwd=folder, check=True)
    (folder / "pytorch_model.safetensors").rename(folder / "model.safetensors")
    assert load_weights(find(tmp_path)[0][0])["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "link.safetensors"])
def test_shards_outside_of_the_checkpoint_are_refused(tmp_path: Path, shard: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "run" / "step-1"
    folder.mkdir(parents=True)
    if shard == "link.safetensors":
        (folder / shard).symlink_to(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"w": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoints, skipped = find(tmp_path / "run")
    assert checkpoints == [] and ("outside of" in skipped[0].reason or "out of the run" in skipped[0].reason)


def test_a_shard_that_lacks_a_promised_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors", "v": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks 1 tensors" in find(tmp_path)[1][0].reason


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "cannot hold its header"),
        (b"abc", "cannot hold its header"),
        (struct.pack("<Q", 2**62) + b"{}", "cannot hold its header"),
        (struct.pack("<Q", 2) + b"{]", "not JSON"),
        (struct.pack("<Q", 4) + b"[1] ", "no data offsets"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "no data offsets"),
        (struct.pack("<Q", 2) + b"{}" + b"more", "longer than its header says"),
    ],
)
def test_damaged_headers(tmp_path: Path, content: bytes, hint: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=hint) as caught:
        read_header(file)
    assert caught.value.path == file


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_header(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("header") / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(content)) + content)
    try:
        read_header(file)
    except InputError as error:
        assert error.reason


def test_every_truncation_is_noticed(tmp_path: Path, make: Any) -> None:
    folder = make.weights(tmp_path / "step-1")
    whole = (folder / "model.safetensors").read_bytes()
    for length in (*range(0, 40), len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        checkpoints, skipped = find(tmp_path)
        assert checkpoints == [] and len(skipped) == 1


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04rest"])
def test_damaged_torch_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and "truncated" in skipped[0].reason


@pytest.mark.real
def test_a_legacy_file_of_torch(data: Path) -> None:
    (checkpoint,), _ = find(data / "runs" / "rxnmapper_albert")
    weights = load_weights(checkpoint)
    assert "albert.embeddings.word_embeddings.weight" in weights
