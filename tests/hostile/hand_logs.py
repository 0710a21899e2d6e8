"""Logs without end: lines, columns, restarts, archives, and texts that regular expressions despair of."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import specimens
from .by_hand import special


def _big(name: str, file: str, write: Callable[[Any], None]) -> None:
    @special(f"log: {name}")
    def make(marker: str) -> Any:
        def act(folder: Path, outside: Path) -> None:
            with (folder / file).open("wb") as out:
                write(out)

        return {}, [act], file


def _sparse(before: bytes, size: int, after: bytes) -> Callable[[Any], None]:
    def write(out: Any) -> None:
        out.write(before)
        out.seek(size, os.SEEK_CUR)
        out.write(after)

    return write


_row = b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.4}\n{"step": 3, "loss": 2.3}\n'
_big(
    "300 MB of zeros between rows of JSON", "log.jsonl", _sparse(_row, 300_000_000, b"\n" + specimens.jsonl())
)
_big("300 MB of zeros in a CSV", "log.csv", _sparse(b"step,loss\n1,2\n2,3\n", 300_000_000, b"\n3,4\n4,5\n"))
_big(
    "300 MB of zeros in a text",
    "train.log",
    _sparse(b"step=1 loss=2\nstep=2 loss=3\n", 300_000_000, b"\nstep=3 loss=4\n"),
)
_big(
    "a line of 100 MB of brackets",
    "log.jsonl",
    lambda out: out.write(_row + b"[" * 100_000_000 + b"\n" + specimens.jsonl()),
)
_big(
    "a trainer state of 100 MB of brackets",
    "trainer_state.json",
    lambda out: out.write(b'{"log_history":[' + b"[" * 100_000_000),
)
_big(
    "a header of a million columns",
    "log.csv",
    lambda out: out.write(b"step,loss," + b",".join(b"c%d" % n for n in range(1_000_000)) + b"\n1,2\n2,3\n"),
)
_big(
    "a new key in every row",
    "log.jsonl",
    lambda out: out.writelines(b'{"step": %d, "loss": 1.5, "k%d": 1}\n' % (n, n) for n in range(50_000)),
)
_big(
    "a row of a million keys",
    "log.jsonl",
    lambda out: out.write(_row + b"{" + b",".join(b'"k%d":1' % n for n in range(1_000_000)) + b"}\n"),
)
_big("a million restarts", "log.csv", lambda out: out.write(b"step,loss\n" + b"2,1.5\n1,1.5\n" * 500_000))
_big(
    "steps at the edge of 64 bits",
    "log.jsonl",
    lambda out: out.write(
        b"".join(
            b'{"step": %d, "loss": 1.5}\n' % n
            for n in (1, 2, 3, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), -5)
        )
    ),
)
_big(
    "steps far apart",
    "log.jsonl",
    lambda out: out.write(
        b"".join(b'{"step": %d, "loss": %d}\n' % (n, n % 7) for n in (1, 2, 3, 9 * 10**14, 9 * 10**14 + 1))
    ),
)
_big(
    "losses at the edge",
    "log.csv",
    lambda out: out.write(
        b"step,loss\n"
        + b"".join(
            b"%d,%s\n" % (n, v)
            for n, v in enumerate(
                [b"1e308", b"-1e308", b"inf", b"-inf", b"nan", b"0", b"-0", b"5e-324", b"1e999"] * 20
            )
        )
    ),
)
_big(
    "lone carriage returns",
    "train.log",
    lambda out: out.write(b"".join(b"\rstep=%d loss=2.5 it/s" % n for n in range(5000))),
)
_big(
    "one line of a million pairs",
    "train.txt",
    lambda out: out.write(b"step=1 loss=2 " + b"key=1 " * 1_000_000 + b"\nstep=2 loss=3\n"),
)
_big(
    "regular expressions' despair: spaces",
    "train.txt",
    lambda out: out.write((b"step " + b" " * 200_000 + b"x\n") * 5 + b"step=1 loss=2\nstep=2 loss=3\n"),
)
_big(
    "regular expressions' despair: digits",
    "train.log",
    lambda out: out.write(
        (b"iteration " + b"1" * 200_000 + b"/\n") * 5
        + b"iter 1: loss 2.0, time 1ms\niter 2: loss 2.0, time 1ms\n"
    ),
)
_big(
    "regular expressions' despair: bars",
    "train.log",
    lambda out: out.write(
        (b" iteration 1/ 10 | " + b"a: " * 100_000 + b"\n") * 3
        + specimens.specimen("log_megatron").files["megatron.log"]
    ),
)
_big(
    "regular expressions' despair: braces",
    "console.log",
    lambda out: out.write(
        (b"{'loss': " + b"{" * 100_000 + b"\n") * 3 + specimens.specimen("log_console").files["console.log"]
    ),
)
_big(
    "a Python expression that is 50,000 deep",
    "console.log",
    lambda out: out.write(
        b"{'loss': "
        + b"-" * 50_000
        + b"1}\n"
        + b"{'loss': "
        + b"(" * 50_000
        + b"1\n"
        + specimens.specimen("log_console").files["console.log"]
    ),
)
_big(
    "a Python power",
    "console.log",
    lambda out: out.write(
        b"{'loss': 9**9**9}\n{'loss': 'a' * 10**10}\n"
        + specimens.specimen("log_console").files["console.log"]
    ),
)


def _gzip_bomb(gigabytes: int) -> bytes:
    member = gzip.compress(bytes(100_000_000), compresslevel=9, mtime=0)
    return gzip.compress(_row, mtime=0) + member * (10 * gigabytes)


for _file in ("log.jsonl.gz", "log.csv.gz", "train.log.gz", "trainer_state.json.gz", "log.jsonl"):
    _big(f"10 GB of zeros in {_file}", _file, lambda out: out.write(_gzip_bomb(10)))


def _tensorboard_bomb(size: int, length: int) -> bytes:
    header = struct.pack("<Q", length)
    return header + specimens.masked(header) + bytes(size)


_big(
    "an event file of a record of an exabyte",
    "events.out.tfevents.1.host.1.0",
    lambda out: out.write(
        specimens.specimen("log_tensorboard").files["events.out.tfevents.1700000000.host.1.0"]
        + _tensorboard_bomb(50, 2**60)
    ),
)
_big(
    "an event file of lengths without end",
    "events.out.tfevents.1.host.1.0",
    lambda out: out.write(
        specimens.specimen("log_tensorboard").files["events.out.tfevents.1700000000.host.1.0"]
        + specimens.record(b"\x2a" + b"\xff" * 50)
    ),
)
_big(
    "an event file of a million tags",
    "events.out.tfevents.1.host.1.0",
    lambda out: out.write(
        specimens.specimen("log_tensorboard").files["events.out.tfevents.1700000000.host.1.0"]
        + specimens.record(
            b"\x10\x01"
            + specimens.field(
                5,
                b"".join(
                    specimens.field(1, specimens.field(1, b"t%d" % n) + b"\x15\x00\x00\x00\x00")
                    for n in range(200_000)
                ),
            )
        )
    ),
)


@special("log: a .wandb file of one record without end")
def _wandb_bomb(marker: str) -> Any:
    (path,) = [path for path in specimens.specimen("log_wandb").files if path.endswith(".wandb")]
    start = specimens.specimen("log_wandb").files[path]
    body = start + b"".join(struct.pack("<IHB", 0, 0, 3) for _ in range(500_000)) + start[7:]
    return {**specimens.specimen("log_wandb").files, path: body}


@special("log: an MLflow run of 5,000 metrics and an artifact elsewhere")
def _mlflow_many(marker: str) -> Any:
    files = dict(specimens.specimen("log_mlflow").files)
    folder = next(path.rpartition("/")[0] for path in files if path.endswith("/metrics/grad_norm"))
    files |= {f"{folder}/m{n}": b"1 1.5 1\n1 1.5 2\n" for n in range(5000)}
    files[f"{folder}/sub/deep/{'x' * 100}"] = b"1 " + b"9" * 100_000 + b" 1\n"
    return files
