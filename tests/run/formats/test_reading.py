"""How files are read: mapped or not, within bounds, and never further than what they claim can be."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hnf_offline.errors import InputError
from hnf_offline.run import open_run
from hnf_offline.run.formats import find, load_optimizer, load_weights
from hnf_offline.run.formats.safetensors_file import read_header, read_json
from hnf_offline.run.formats.safetensors_reading import read_tensors
from hnf_offline.run.model.build import build_model, load_weights_into

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16),
    *(
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.uint16,
        torch.uint32,
    ),
]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_plain_reads_give_what_the_library_gives(tmp_path: Path, dtype: torch.dtype) -> None:
    content = torch.randint(0, 2, (3, 5)).to(dtype)
    tensors = {"a": content, "none": content[:0].clone(), "scalar": content[0, 0].clone()}
    save_file(tensors, tmp_path / "x.safetensors")
    own, theirs = read_tensors(tmp_path / "x.safetensors"), load_file(tmp_path / "x.safetensors")
    assert set(own) == set(theirs)
    for name, value in theirs.items():
        assert own[name].dtype == value.dtype and own[name].shape == value.shape
        assert own[name].flatten().tolist() == value.flatten().tolist(), name


def layouts(folder: Path, make: Any) -> None:
    module = make.module()
    optimizer = torch.optim.AdamW(module.parameters())
    make.train(module, optimizer)
    state = module.state_dict()
    save_file(state, folder / "step_1.safetensors")
    make.weights(folder / "checkpoint-2", module)
    torch.save(optimizer.state_dict(), folder / "checkpoint-2" / "optimizer.pt")
    (folder / "checkpoint-3").mkdir()
    torch.save(state, folder / "checkpoint-3" / "pytorch_model.bin")
    torch.save({"model": state, "iter_num": 4, "optimizer": optimizer.state_dict()}, folder / "ckpt.pt")
    torch.save({"net": state, "opt": optimizer.state_dict()}, folder / "model_5.pth")
    lightning = {"pytorch-lightning_version": "2", "global_step": 6, "state_dict": state}
    torch.save({**lightning, "optimizer_states": [optimizer.state_dict()]}, folder / "last.ckpt")
    (folder / "checkpoint-7").mkdir()
    save_file({"q.lora_A.weight": torch.ones(2)}, folder / "checkpoint-7" / "adapter_model.safetensors")
    (folder / "step8-unsharded").mkdir()
    (folder / "step8-unsharded" / "config.yaml").write_text("seed: 1\n")
    torch.save(state, folder / "step8-unsharded" / "model.pt")
    torch.save(optimizer.state_dict(), folder / "step8-unsharded" / "optim.pt")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("memory_map", [True, False])
def test_without_mapping_nothing_of_the_run_is_mapped(tmp_path: Path, make: Any, memory_map: bool) -> None:
    layouts(tmp_path, make)
    run = open_run(tmp_path, memory_map=memory_map)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {checkpoint.layout for checkpoint in run.checkpoints} == {
        "safetensors_folder", "hf_trainer", "nanogpt", "torch_state", "lightning", "adapter", "olmo",
    }  # fmt: skip
    for checkpoint in run.checkpoints:
        held = load_weights(checkpoint), load_optimizer(checkpoint)
        mapped = str(tmp_path.resolve()) in Path("/proc/self/maps").read_text()
        assert mapped == memory_map, checkpoint.layout
        other = load_weights(replace(checkpoint, memory_map=not memory_map))
        assert all(torch.equal(other[name], value) for name, value in held[0].items())
        del held, other


def test_plain_reads_hold_each_tensor_once(tmp_path: Path) -> None:
    save_file({f"w{i}": torch.zeros(1_000_000) for i in range(4)}, tmp_path / "x.safetensors")
    tracemalloc.start()
    held = read_tensors(tmp_path / "x.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(held) == 4 and 16e6 <= peak < 17e6


def header_of(path: Path, header: Any, data: int = 8) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def entry(start: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [start, end],
    }


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ({"a": entry(0, 8), "b": entry(0, 8)}, "overlap"),
        ({"a": entry(0, 4, (1,)), "b": entry(3, 8, (5,), "U8")}, "overlap"),
        ({"a": entry(4, 8, (1,))}, "gap"),
        ({"a": entry(-4, 4)}, "lies at"),
        ({"a": entry(8, 0)}, "lies at"),
        ({"a": entry(0.0, 8)}, "lies at"),
        ({"a": entry(False, 8)}, "lies at"),
        ({"a": entry(0, 8, (3,))}, "has 8 bytes"),
        ({"a": entry(0, 8, (-2,))}, "has 8 bytes"),
        ({"a": entry(0, 8, (2**40, 2**40, 2**40))}, "has 8 bytes"),
        ({"a": entry(0, 8, "22")}, "has 8 bytes"),
        ({"a": entry(0, 8, (1,) * 70)}, "has 8 bytes"),
        ({"a": entry(0, 8, (2.0,))}, "has 8 bytes"),
        ({"a": entry(0, 8, (2,), "F33")}, "unknown type"),
        ({"a": entry(0, 8, (2,), ["F32"])}, "unknown type"),
        ({"a": entry(0, 10**30, (2,))}, "has 1000000000000000000000000000000 bytes"),
        ({"a": entry(0, 400, (100,))}, "truncated"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "no data offsets"),
        ({"a": None}, "no data offsets"),
        ([1, 2], "no data offsets"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, hint: str) -> None:
    path = header_of(tmp_path / "model.safetensors", header)
    for read in (read_header, read_tensors):
        with pytest.raises(InputError, match=hint) as caught:
            read(path)
        assert caught.value.path == path and len(str(caught.value)) < 600


@pytest.mark.parametrize("text", [b"[" * 15_000_000, b'{"a":' * 3_000_000, b"[]," * 5_000_000])
def test_headers_of_brackets_are_refused_at_once(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    began = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(InputError, match="brackets"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    tracemalloc.stop()
    assert time.perf_counter() - began < 5
    path.write_bytes(text)
    assert read_json(path) == {}


@pytest.mark.parametrize(
    ("shard", "hint"),
    [
        ("model.safetensors.index.json", "which is an index"),
        ("model-00002-of-00002.safetensors", "which is not there"),
        ("cut.safetensors", "truncated"),
    ],
)
def test_an_index_that_names_no_weights(tmp_path: Path, shard: str, hint: str) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    save_file({"w": torch.ones(20)}, folder / "cut.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "cut.safetensors").read_bytes()[:-5])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    checkpoints, skipped = find(tmp_path)
    assert checkpoints == [] and len(skipped) == 1 and hint in skipped[0].reason and skipped[0].remedy


@pytest.mark.real
def test_the_real_runs_open_with_no_options(data: Path) -> None:
    sharded = open_run(data / "runs" / "hf_sharded_safetensors")
    trained = open_run(data / "runs" / "hf_trainer_llama_spike")
    (checkpoint,) = sharded.checkpoints
    assert len(checkpoint.weight_files) == 4 and sharded.model is not None
    last, parts = load_weights(trained.checkpoints[-1]), load_weights(checkpoint)
    assert set(last) == set(parts) and all(torch.equal(last[name], parts[name]) for name in last)


@pytest.mark.real
def test_the_real_legacy_file_is_one_checkpoint_of_its_model(data: Path) -> None:
    pytest.importorskip("transformers")
    run = open_run(data / "runs" / "rxnmapper_albert")
    (checkpoint,) = run.checkpoints
    assert run.model is not None and run.model.config["model_type"] == "albert" and run.skipped == ()
    module = build_model(run.model, device=torch.device("cpu"), dtype=torch.float32)
    load_weights_into(module, load_weights(checkpoint))
    whole = torch.load(checkpoint.weight_files[0], map_location="cpu", weights_only=True)
    assert torch.equal(module.state_dict()["albert.embeddings.word_embeddings.weight"],
                       whole["albert.embeddings.word_embeddings.weight"])  # fmt: skip
