"""Canaries and bombs in the place of every pickle, and descriptions of checkpoints that do not fit."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from . import pickles
from .cases import HTML, NAMES, Case, Rng, pick
from .damage_zip import is_zip


def holds_pickles(path: str) -> bool:
    return (
        is_zip(path)
        or path.endswith((".metadata", ".pkl", ".bin", ".distcp"))
        or ("unsharded" in path and path.endswith(".safetensors"))
    )


def damage_pickle(rng: Rng, one: Case, path: str, marker: str) -> str:
    routes = pickles.canaries(marker)
    route = pick(rng, routes)
    if rng.random() < 0.25:
        route, whole = pick(rng, pickles.bombs())
        canary = whole[2:-1] + b"0"
    else:
        canary = routes[route]
    one.files[path] = with_canary(one.files, path, canary)
    return f"canary: {route}"


def with_canary(files: Mapping[str, bytes], path: str, canary: bytes) -> bytes:
    """Put a canary where a file holds a pickle, whatever kind of file it is."""
    data = files[path]
    if path.endswith(".npz"):
        array = (
            b"\x93NUMPY\x01\x00"
            + struct.pack("<H", 60)
            + b"{'descr': '|O', 'fortran_order': False, 'shape': (8, 4), }".ljust(59)
            + b"\n"
        )
        return pickles.rewritten(
            data,
            lambda name, content: array + pickles.alone(canary) if name.startswith("tokens") else content,
        )
    if path.endswith(".safetensors"):
        return _olmo_canary(data, canary)
    if path.endswith(".distcp"):
        return _slice_canary(data, canary)
    if zipfile.is_zipfile(io.BytesIO(data)):
        return pickles.in_archive(data, canary)
    if data[:1] == b"\x80":
        return pickles.before(canary, data)
    return pickles.alone(canary)


def _olmo_canary(data: bytes, canary: bytes) -> bytes:
    # A tensor's name, of another length: the header is written anew.

    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    whole = pickles.before(canary, base64.b64decode(first))
    header[base64.b64encode(whole).decode()] = header.pop(first)
    spelled = json.dumps(header).encode()
    return struct.pack("<Q", len(spelled)) + spelled + data[8 + length :]


def _slice_canary(data: bytes, canary: bytes) -> bytes:
    # A block keeps its place and length: the canary takes the room of the member that torch pads with, or is cut in.
    starts = [found.start() for found in re.finditer(b"PK\x03\x04", data)]
    place_ = data.find(b"\x80\x02", starts[0])
    body = pickles.alone(canary)
    return data[:place_] + body + data[place_ + len(body) :]


def damage_dcp(rng: Rng, one: Case, path: str, marker: str) -> str:
    """Records of a `.metadata` that are valid pickles and do not fit."""
    described = pickle.loads(one.files[path])
    keys = list(described.storage_data)
    key = pick(rng, keys)
    info = described.storage_data[key]
    number = pick(rng, (-1, 0, 1, 2**31, 2**63 - 1, 2**70, 1.5, None, "x", info.offset + 1, info.length - 1))
    how = pick(
        rng,
        (
            "offset",
            "length",
            "relative_path",
            "size",
            "chunks",
            "dtype",
            "drop",
            "fqn",
            "planner",
            "laugh",
            "huge",
        ),
    )
    tensors = [k for k, v in described.state_dict_metadata.items() if hasattr(v, "chunks")]
    name = pick(rng, tensors)
    tensor = described.state_dict_metadata[name]
    match how:
        case "offset" | "length":
            setattr(info, how, number)
        case "relative_path":
            info.relative_path = pick(
                rng,
                (
                    "../outside/x",
                    "/etc/passwd",
                    "",
                    ".",
                    "..",
                    ".metadata",
                    "a\x00b",
                    "n" * 5000,
                    None,
                    5,
                    HTML,
                ),
            )
        case "size":
            object.__setattr__(
                tensor, "size", pick(rng, ((10**9, 10**9), (-1,), (), (0,), None, (2.5,), (10**30,)))
            )
        case "chunks":
            chunk = pick(rng, tensor.chunks)
            object.__setattr__(
                chunk,
                pick(rng, ("offsets", "sizes")),
                pick(rng, ((0,), (10**9, 0), (-1, -1), None, (0,) * 70)),
            )
        case "dtype":
            import torch

            tensor.properties.dtype = pick(rng, (torch.float64, torch.bool, torch.complex128, torch.uint8))
        case "drop":
            del described.storage_data[key]
        case "fqn":
            described.state_dict_metadata[pick(rng, (*NAMES, "\ud800", 5, (1,)))] = (
                described.state_dict_metadata.pop(name)
            )
        case "planner":
            described.planner_data = pick(
                rng, (None, 5, {name: 7}, {name: ("model",) * 5000}, {name: [name]})
            )
        case "laugh":
            described.planner_data = laugh()
        case _:
            described.state_dict_metadata |= {f"model.{HTML}{n}": tensor for n in range(3000)}
    one.files[path] = pickle.dumps(described, protocol=4)
    return f"records: {how} of {name if how in {'size', 'chunks', 'dtype'} else key}"


def laugh() -> Any:
    """Lists of lists that share: small to hold, for ever to walk."""
    value: Any = [1]
    for _ in range(40):
        value = [value] * 10
    return value
