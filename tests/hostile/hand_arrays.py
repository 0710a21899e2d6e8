"""Files of torch and numpy that unfold, repeat, or claim what is not there."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from . import pickles, specimens
from .by_hand import run_with, special, weights
from .cases import HTML
from .damage_pickles import laugh


def _torch_special(name: str, make: Callable[[], Any]) -> None:
    for place in ("nanogpt", "lightning", "state", "optimizer"):

        @special(f"torch {place}: {name}")
        def build(marker: str, place: str = place) -> Any:
            return _at(place, make())


def _at(place: str, value: Any) -> dict[str, bytes]:
    state = specimens.trained()[0].state_dict()
    match place:
        case "nanogpt":
            content = {
                "model": state,
                "optimizer": {"state": {}, "param_groups": []},
                "model_args": {},
                "iter_num": 20,
                "config": value,
            }
            return {"ckpt.pt": specimens.torch_bytes(content)}
        case "lightning":
            content = {
                "epoch": 0,
                "global_step": 20,
                "pytorch-lightning_version": "2",
                "state_dict": state,
                "optimizer_states": [],
                "hyper_parameters": value,
            }
            return {"epoch=0-step=20.ckpt": specimens.torch_bytes(content)}
        case "state":
            content = value if isinstance(value, dict) else {"x": value}
            return {"step-20.pt": specimens.torch_bytes({**state, **content})}
        case _:
            return {
                "checkpoint-20/model.safetensors": save(state),
                "checkpoint-20/optimizer.pt": specimens.torch_bytes({
                    "state": {},
                    "param_groups": [{"params": [], "lr": value}],
                }),
            }


def _self_dict() -> Any:
    value: dict[Any, Any] = {}
    for number in range(1000):
        value[str(number)] = value
    return value


def _branching() -> Any:
    value: Any = {"x": 1}
    for _ in range(40):
        value = {str(n): value for n in range(100)}
    return value


_torch_special("a billion laughs in lists", laugh)
_torch_special("a billion laughs in dicts", _branching)
_torch_special("a dict of itself", _self_dict)
_torch_special("a tensor of stride 0", lambda: {"0.weight": torch.zeros(1).expand(10**6, 10**6)})
_torch_special("a meta tensor", lambda: {"0.weight": torch.empty(5, 3, device="meta")})
_torch_special("a sparse tensor", lambda: {"0.weight": torch.eye(5, 3).to_sparse()})
_torch_special("a complex tensor", lambda: {"0.weight": torch.zeros(5, 3, dtype=torch.complex64)})
_torch_special("a bool tensor", lambda: {"0.weight": torch.zeros(5, 3, dtype=torch.bool)})
_torch_special("an empty tensor", lambda: {"0.weight": torch.zeros(0, 3)})
_torch_special(
    "a thousand views of one storage",
    lambda: {f"v{n}": torch.ones(50).view(5, 10)[:, n % 10] for n in range(1000)},
)
_torch_special("names of half a character", lambda: {"\ud800": torch.zeros(2), "a\x1b[31m\n": torch.zeros(2)})
_torch_special(
    "numbers beyond numbers",
    lambda: {"lr": 10**400, "x": float("nan"), "betas": (float("inf"),), "step": -(2**70)},
)
_torch_special("HTML", lambda: {HTML: HTML, "a": [HTML]})
_torch_special("a set of tuples", lambda: {"a": {1, 2}, "b": ((1, (2, (3,))),), "c": b"\xff\xfe"})


for _number, (_name, _bomb_bytes) in enumerate(pickles.bombs()):

    @special(f"pickle bomb in a torch file: {_name}")
    def _pickle_bomb(marker: str, bomb: bytes = _bomb_bytes) -> Any:
        archive = specimens.specimen("torch_state").files["step-20.pt"]
        changed = pickles.rewritten(
            archive, lambda name, content: bomb if name.endswith("data.pkl") else content
        )
        whole = specimens.specimen("dcp").files
        return {
            "step-20.pt": changed,
            "ckpt.pt": changed,
            "step-25/pytorch_model.bin": bomb,
            "checkpoint-30/model.safetensors": weights(),
            "checkpoint-30/optimizer.pt": changed,
            **whole,
            "step-20/.metadata": bomb,
        }


@special("a torch archive whose pickle unpacks to 4 GB")
def _torch_zip_bomb(marker: str) -> Any:
    def act(folder: Path, outside: Path) -> None:
        with zipfile.ZipFile(folder / "step-20.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
                member.write(b"\x80\x02X\xff\xff\xff\xff")
                for _ in range(40):
                    member.write(bytes(100_000_000))
            archive.writestr("archive/version", "3\n")

    return {"log.jsonl": specimens.jsonl()}, [act], "."


@contextmanager
def _one_member(file: Path) -> Iterator[Any]:
    compressed = zipfile.ZIP_DEFLATED
    with (
        zipfile.ZipFile(file, "w", compressed, compresslevel=1) as archive,
        archive.open("tokens.npy", "w", force_zip64=True) as member,
    ):
        yield member


@special("a .npz whose header unpacks to 3 GB")
def _npz_header_bomb(marker: str) -> Any:
    def act(folder: Path, outside: Path) -> None:
        with _one_member(folder / "batches.npz") as member:
            member.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 3_000_000_000))
            for _ in range(30):
                member.write(bytes(100_000_000))

    return run_with(), [act], "."


@special("a .npz of 2 GB of zeros in some MB")
def _npz_rows_bomb(marker: str) -> Any:
    def act(folder: Path, outside: Path) -> None:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (20000000, 100), }\n"
        with _one_member(folder / "batches.npz") as member:
            member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
            for _ in range(20):
                member.write(bytes(100_000_000))

    return run_with(), [act], "."


def _npz_lie(name: str, **arrays: bytes) -> None:
    @special(f"npz: {name}")
    def make(marker: str) -> Any:
        return run_with(**{"batches.npz": specimens.archive(**arrays)})


def npy_bytes(shape: str, kind: str = "'<i8'", data: bytes = bytes(64), version: int = 1) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


_npz_lie("steps of a trillion", tokens=npy_bytes("(4, 2)"), steps=npy_bytes("(1000000000000,)", data=b""))
_npz_lie("rows of a trillion", tokens=npy_bytes("(1000000000000, 2)"))
_npz_lie("a row of a trillion", tokens=npy_bytes("(1, 1000000000000)"))
_npz_lie("numbers that overflow", tokens=npy_bytes("(4294967296, 4294967296, 4294967296)"))
_npz_lie("nested brackets", tokens=npy_bytes("(" * 200 + ")" * 200))
_npz_lie("many nested brackets", tokens=npy_bytes("(" * 9000))
_npz_lie("a call", tokens=npy_bytes("(__import__('os').system('x'), 1)"))
_npz_lie("labels of another size", tokens=npy_bytes("(4, 2)"), labels=npy_bytes("(1000000000000, 2)"))
_npz_lie("a name of a way out", **{"../../tokens": npy_bytes("(4, 2)"), "tokens": npy_bytes("(4, 2)")})
_npz_lie("ten thousand arrays", **{f"a{n}": b"x" for n in range(10_000)})
_npz_lie("negative tokens", tokens=npy_bytes("(4, 2)", data=np.full(8, -5).tobytes()))
_npz_lie("a type of a million fields", tokens=npy_bytes("(4, 2)", kind="[" + "('a', '<i4')," * 700 + "]"))
_npz_lie("version 3 and not UTF-8", tokens=npy_bytes("(4, 2)", version=3)[:20] + b"\xff\xfe")


@special("places in a flat token file that are a trillion")
def _starts_bomb(marker: str) -> Any:
    files = dict(specimens.specimen("flat_tokens").files)
    return {**files, "starts.npy": npy_bytes("(1000000000000,)")}


@special("places in a flat token file that are objects")
def _starts_objects(marker: str) -> Any:
    files = dict(specimens.specimen("flat_tokens").files)
    canary = pickles.alone(pickles.canaries(marker)["REDUCE os.system"])
    return {**files, "starts.npy": npy_bytes("(1,)", kind="'|O'", data=canary)}
