from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes((number & 127 | 128,))
        number >>= 7
    return out + bytes((number,))


def text(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def history(row: Mapping[str, Any]) -> bytes:
    items = b""
    for key, value in row.items():
        keys = b"".join(text(2, part.encode()) for part in key.split("//"))
        items += text(1, keys + text(16, json.dumps(value).encode()))
    return varint(1 << 3) + varint(7) + text(2, items) + text(200, b"control")


def chunk(kind: int, data: bytes) -> bytes:
    return struct.pack("<IHB", zlib.crc32(data, zlib.crc32(bytes((kind,)))), len(data), kind) + data


def wandb_bytes(records: Sequence[bytes]) -> bytes:
    """As wandb/sdk/internal/datastore.py writes them."""
    out = b":W&B\xe1\xbe\x00"
    for record in records:
        left, first = record, True
        while True:
            room = 32_768 - len(out) % 32_768
            if room < 7:
                out += b"\0" * room
                continue
            part, left = left[: room - 7], left[room - 7 :]
            out += chunk({(1, 1): 1, (1, 0): 2, (0, 0): 3, (0, 1): 4}[int(first), int(not left)], part)
            first = False
            if not left:
                break
    return out


def wandb_run(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A run's folder such as wandb/offline-run-20250101_000000-abc."""
    folder.mkdir(parents=True)
    file = folder / f"run-{folder.name.rpartition('-')[2]}.wandb"
    file.write_bytes(wandb_bytes([history(row) for row in rows]))
    return file


def mlflow_run(
    folder: Path, metrics: Mapping[str, Sequence[tuple[int, float, int]]], name: str = "calm-owl"
) -> Path:
    """A run's folder such as mlruns/0/abc; entries are time, value and step."""
    for metric, entries in metrics.items():
        file = folder / "metrics" / metric
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{1_700_000_000_000 + time} {value} {step}\n" for time, value, step in entries]
        file.write_text("".join(lines))
    (folder / "tags").mkdir(exist_ok=True)
    (folder / "tags" / "mlflow.runName").write_text(name)
    (folder / "meta.yaml").write_text("run_id: x\n")
    return folder


@pytest.fixture
def make_logs() -> SimpleNamespace:
    return SimpleNamespace(
        history=history,
        chunk=chunk,
        text=text,
        wandb_bytes=wandb_bytes,
        wandb_run=wandb_run,
        mlflow_run=mlflow_run,
    )
