"""JSON bombs wherever JSON is read, shard indexes that lead astray, safetensors headers that lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from . import specimens
from .by_hand import header_and, run_with, special, weights
from .cases import HTML

_BOMBS: Mapping[str, Callable[[], bytes]] = {
    "100,000 deep lists": lambda: b"[" * 100_000 + b"]" * 100_000,
    "100,000 deep objects": lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "one key of 45 MB": lambda: b'{"' + b"k" * 45_000_000 + b'": 1}',
    "one value of 45 MB": lambda: b'{"model_type": "' + b"v" * 45_000_000 + b'"}',
    "a million keys": lambda: b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
    "15 million empty lists": lambda: b'{"a":[' + b"[]," * 15_000_000 + b"[]]}",
    "a number of 4 million digits": lambda: b'{"step":' + b"9" * 4_000_000 + b', "loss": 1}',
    "20 million numbers": lambda: b'{"a":[' + b"1," * 20_000_000 + b"1]}",
}
_JSON_PLACES = {
    "config.json": "step-20/config.json",
    "run config": "config.json",
    "RUN.json": "RUN.json",
    "trainer_state.json": "trainer_state.json",
    "index": "step-30/model.safetensors.index.json",
    "adapter_config.json": "checkpoint-30/adapter_config.json",
}


def _json_special(bomb: str, place: str) -> None:
    @special(f"JSON in {place}: {bomb}")
    def make(marker: str) -> Any:
        files = run_with()
        if place == "safetensors header":
            files["step-30/model.safetensors"] = header_and(_BOMBS[bomb]())
        elif place == "log line":
            files["log.jsonl"] += _BOMBS[bomb]() + b"\n" + specimens.jsonl()
        elif place == "log alone":
            return {"log.jsonl": _BOMBS[bomb]() + b"\n" + specimens.jsonl()}, [], "log.jsonl"
        else:
            files[_JSON_PLACES[place]] = _BOMBS[bomb]()
        if place == "adapter_config.json":
            files["checkpoint-30/adapter_model.safetensors"] = weights()
        return files


# Every bomb in the place where settings, states, headers and rows are read; every place with the deepest of them.
for _bomb in _BOMBS:
    for _place in ("config.json", "trainer_state.json", "safetensors header", "log line"):
        _json_special(_bomb, _place)
for _place in ("run config", "RUN.json", "index", "adapter_config.json", "log alone"):
    for _bomb in ("100,000 deep lists", "one key of 45 MB", "15 million empty lists"):
        _json_special(_bomb, _place)


@special("a shard index with 20,000 shards that are not there")
def _many_shards(marker: str) -> Any:
    index = {"weight_map": {f"t{n}": f"model-{n}.safetensors" for n in range(20_000)}}
    return run_with(**{"step-30/model.safetensors.index.json": specimens.json_bytes(index)})


@special("a shard index with 3,000 shards that are there")
def _many_present_shards(marker: str) -> Any:
    files = {f"step-30/model-{n}.safetensors": save({f"t{n}": torch.zeros(1)}) for n in range(3_000)}
    index = {"weight_map": {f"t{n}": f"model-{n}.safetensors" for n in range(3_000)}}
    return {**files, "step-30/model.safetensors.index.json": specimens.json_bytes(index)}


@special("a shard index that names itself, its folder, and ways out")
def _index_cycle(marker: str) -> Any:
    files = {}
    for number, shard in enumerate((
        "model.safetensors.index.json",
        ".",
        "..",
        "../step-21/model.safetensors",
        "/etc/passwd",
        "../../outside/model.safetensors",
        "a/../../step-20/model.safetensors",
        "",
        "\x00",
        "n" * 5000,
        HTML,
        "link.safetensors",
    )):
        files[f"step-{20 + number}/model.safetensors.index.json"] = specimens.json_bytes({
            "weight_map": {"0.weight": shard}
        })

    def links(folder: Path, outside: Path) -> None:
        (folder / "step-31" / "link.safetensors").symlink_to(outside / "model.safetensors")

    return files, [links], "."


def _lying_header(name: str, header: Any, data: bytes = bytes(64)) -> None:
    @special(f"safetensors: {name}")
    def make(marker: str) -> Any:
        spelled = header if isinstance(header, bytes) else json.dumps(header).encode()
        return run_with(**{
            "step-30/model.safetensors": header_and(spelled, data),
            "batches.safetensors": header_and(spelled, data),
        })


def _one(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


for _name, _lie in {
    "overlapping": {"a": _one([8], [0, 32]), "b": _one([8], [16, 48]), "c": _one([4], [48, 64])},
    "the same bytes a thousand times": {f"t{n}": _one([16], [0, 64]) for n in range(1000)},
    "negative": {"a": _one([8], [-32, 0]), "b": _one([16], [0, 64])},
    "huge shape": {"input_ids": _one([10**12, 10**12], [0, 64], "I64")},
    "huge offsets": {"a": _one([16], [2**63, 2**63 + 64])},
    "steps of a trillion": {
        "input_ids": _one([4, 1], [0, 32], "I64"),
        "steps": _one([10**12], [32, 64], "I64"),
    },
    "empty shapes by the thousand": {f"t{n}": _one([0] * 64, [0, 0]) for n in range(3000)}
    | {"a": _one([16], [0, 64])},
    "no type": {"a": _one([16], [0, 64], None)},
    "4-bit": {"a": _one([128], [0, 64], "F4")},
    "names of markup": {HTML * 50: _one([16], [0, 64])},
    "a name of a megabyte": {"n" * 1_000_000: _one([16], [0, 64])},
    "a name of half a character": b'{"\\ud800": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}',
    "a key twice": b'{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, '
    b'"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}',
    "metadata of numbers": {"__metadata__": {"optimizer": 5, "format": ["pt"]}, "a": _one([16], [0, 64])},
    "only metadata": {"__metadata__": {"format": "pt"}},
    "NaN for a place": b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 1e999]}}',
}.items():
    _lying_header(_name, _lie)


@special("optimizer metadata of 100,000 deep JSON")
def _deep_metadata(marker: str) -> Any:
    header = {"__metadata__": {"optimizer": "[" * 100_000}, "exp_avg.0.weight": _one([16], [0, 64])}
    return run_with(**{"step-20/optimizer.safetensors": header_and(json.dumps(header).encode(), bytes(64))})
