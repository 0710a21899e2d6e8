"""One tiny log of every format, written as its program writes it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ROWS, LENGTH = 8, 4
STEPS = 24


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def losses(steps: int = STEPS) -> list[float]:
    noise = np.random.default_rng(0).standard_normal(steps)
    values = [float(3 * np.exp(0.01 * one)) for one in noise]
    values[steps // 2] *= 3
    return values


def rows() -> list[dict[str, float]]:
    return [
        {"step": step, "loss": round(loss, 5), "grad_norm": 1.0, "learning_rate": 0.001}
        for step, loss in enumerate(losses(), 1)
    ]


def jsonl() -> bytes:
    return b'{"_meta": {"name": "x"}}\n' + b"".join(json.dumps(row).encode() + b"\n" for row in rows())


def trainer_state() -> bytes:
    history: list[dict[str, Any]] = [{**row, "epoch": row["step"] / 10} for row in rows()]
    history.append({"train_runtime": 1.0, "train_loss": 3.0, "step": STEPS})
    return json_bytes({
        "best_metric": None,
        "epoch": 2.4,
        "global_step": STEPS,
        "log_history": history,
        "logging_steps": 1,
        "max_steps": STEPS,
        "num_train_epochs": 3,
        "save_steps": 10,
        "train_batch_size": 8,
        "trial_params": None,
    })


def csv() -> bytes:
    lines = [f"{row['step']},{row['loss']},{row['grad_norm']}" for row in rows()]
    return ("step,loss,grad_norm\n" + "\n".join(lines) + "\n").encode()


def tsv() -> bytes:
    lines = [f"{row['step']}\t{row['loss']}\tNaN" for row in rows()]
    return ("step\ttrain/lm_loss\tgrad_norm\n" + "\n".join(lines) + "\n").encode()


def console_rows() -> bytes:
    shown = [
        {
            "loss": str(row["loss"]),
            "grad_norm": "1.0",
            "learning_rate": "0.001",
            "epoch": str(row["step"] / 10),
        }
        for row in rows()
    ]
    return (
        "\n".join(["Loading checkpoint", *(repr(row) for row in shown)])
        + "\n{'train_runtime': '1.0', 'train_loss': '3.0'}\n"
    ).encode()


def fairseq() -> bytes:
    lines = []
    for row in rows():
        inner = json.dumps({
            "epoch": 1,
            "update": "0.1",
            "loss": str(row["loss"]),
            "gnorm": "1.0",
            "num_updates": str(int(row["step"])),
            "lr": "0.001",
            "loss_scale": "128",
        })
        lines.append(f"2021-06-08 10:00:00 | INFO | train_inner | {inner}")
    return ("\n".join(["2021-06-08 10:00:00 | INFO | fairseq_cli.train | {'x': 1}", *lines]) + "\n").encode()


def megatron_log() -> bytes:
    lines = [
        f" iteration {int(row['step']):8d}/     100 | consumed samples: {int(row['step']) * 8:12d} | "
        f"elapsed time per iteration (ms): 100.0 | learning rate: 1.000E-03 | global batch size:     8 | "
        f"lm loss: {row['loss']:.6E} | loss scale: 1.0 | grad norm: 1.000 | number of skipped iterations:   0 | "
        f"number of nan iterations:   0 |"
        for row in rows()
    ]
    return ("\n".join(["using world size: 1", *lines]) + "\n").encode()


def modded_nanogpt() -> bytes:
    lines = [
        f"step:{int(row['step'])}/100 train_loss:{row['loss']:.4f} "
        f"train_time:{int(row['step']) * 100}ms step_avg:100.00ms"
        for row in rows()
    ]
    lines.insert(12, "step:12/100 val_loss:3.1000 train_time:1200ms step_avg:100.00ms")
    return ("import torch\nprint('hello')\n" + "=" * 100 + "\n" + "\n".join(lines) + "\n").encode()


def build_nanogpt() -> bytes:
    lines = [
        f"step {int(row['step']):5d} | loss: {row['loss']:.6f} | lr 1.0000e-03 | norm: 1.0000 | dt: 100.00ms "
        f"| tok/sec: 1000.00"
        for row in rows()
    ]
    lines.insert(12, "validation loss: 3.1000")
    return ("\n".join(["using device: cpu", *lines]) + "\n").encode()


def llm_c() -> bytes:
    lines = ["s:0 tel:11.0"]
    lines += [f"s:{int(row['step'])} trl:{row['loss']:.4f} lr:0.001000 norm:1.00" for row in rows()]
    return ("\n".join(lines) + "\n").encode()


def nanogpt_log() -> bytes:
    lines = ["number of parameters: 0.80M", "step 0: train loss 4.2, val loss 4.3"]
    lines += [f"iter {int(row['step'])}: loss {row['loss']:.4f}, time 10.00ms, mfu 1.00%" for row in rows()]
    return ("\n".join(lines) + "\n").encode()


def key_value() -> bytes:
    lines = [
        f"[INFO] step={int(row['step'])} loss={row['loss']:.4f} grad_norm=1.0 lr=0.001" for row in rows()
    ]
    return ("\n".join(lines) + "\n").encode()


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = _crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def tensorboard() -> bytes:
    # Event: wall_time = 1 (double), step = 2 (varint), file_version = 3, summary = 5 { value = 1 { tag = 1,
    # simple_value = 2 (float) } } (tensorflow/core/util/event.proto, framework/summary.proto).
    wall = b"\x09" + struct.pack("<d", 1.7e9)
    events = [record(wall + field(3, b"brain.Event:2"))]
    for row in rows():
        value = field(1, b"train/loss") + b"\x15" + struct.pack("<f", row["loss"])
        events.append(record(wall + b"\x10" + _varint(int(row["step"])) + field(5, field(1, value))))
    return b"".join(events)


def wandb() -> bytes:
    # 7 bytes of header, then blocks of LevelDB's log (crc32, length, type) of protobuf records (formats.md).
    # Record.history = 2 { item = 1 { key = 1, value_json = 16, nested_key = 2 } } (wandb_internal.proto).
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for row in rows():
        item = b"".join(
            field(1, field(2, key.encode()) + field(16, json.dumps(value).encode()))
            for key, value in {"_step": row["step"], "step": row["step"], "train/loss": row["loss"]}.items()
        )
        data = field(2, item)
        crc = zlib.crc32(data, zlib.crc32(b"\x01"))
        out += struct.pack("<IHB", crc, len(data), 1) + data
    return bytes(out)


def mlflow() -> Mapping[str, bytes]:
    run = "mlruns/0/0123456789abcdef0123456789abcdef"
    metric = {
        name: "".join(f"1700000000000 {value(row)} {int(row['step'])}\n" for row in rows()).encode()
        for name, value in (("train_loss", lambda row: row["loss"]), ("grad_norm", lambda row: 1.0))
    }
    return {
        f"{run}/meta.yaml": b"run_id: 0123456789abcdef0123456789abcdef\nartifact_uri: file:///etc\n",
        **{f"{run}/metrics/{name}": data for name, data in metric.items()},
        f"{run}/params/lr": b"0.001",
    }
