from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import polars as pl
import pytest

from hnf_offline.errors import InputError
from hnf_offline.run.logs import LOG_FORMATS, read_log
from hnf_offline.run.logs.blocks import Lines
from hnf_offline.run.logs.lines import LONGEST_LINE, head

SAMPLES = {
    "jsonl": '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN, "x": {"y": [1]}}\n' * 20,
    "trainer_state": '{"log_history": [{"step": 1, "loss": 2.5}, {"step": 2, "loss": NaN}]}',
    "delimited": "step,loss,lr\n1,2.5,\n2,nan,0.1\n" * 20,
    "fairseq": '| INFO | train_inner | {"loss": "2.5", "num_updates": "1", "gnorm": "1"}\n'
    "| epoch 001:    10 / 60 loss=9.5, num_updates=10, lr=1e-05\n" * 20,
    "megatron": " iteration 1/ 9 | lm loss: 2.5E+00 | grad norm: 1.5 |\n" * 20,
    "modded_nanogpt": "step:1/9 train_loss:2.5 train_time:3ms\nstep:1/9 val_loss:2.5\n" * 20,
    "build_nanogpt": "step     1 | loss: 2.5 | lr 1e-4 | norm: 1.5 | dt: 3.5ms | tok/sec: 9.5\n1 val 2.5\n"
    * 20,
    "llm_c": "step 1/9 | train loss 2.5 | norm 1.5 | lr 1e-04 | (4.4 ms | 58k tok/s)\ns:1 trl:2.5\n" * 20,
    "nanogpt": "iter 1: loss 2.5, time 3.5ms, mfu 1.5%\nstep 1: train loss 2.5, val loss 2.5\n" * 20,
    "console_rows": "{'loss': 2.5, 'epoch': 1.0}\n 10%|# | 1/10 [00:01<00:09]\n{'loss': 'nan', 'epoch': 2}\n"
    * 20,
    "key_value": "step=1 loss=2.5\nGradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 2.0\n"
    "step=2 loss=nan [a](b) x: 1\n" * 20,
}


def test_there_is_a_sample_of_every_text_format() -> None:
    assert set(SAMPLES) == set(LOG_FORMATS) - {"tensorboard", "wandb", "mlflow"}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("seed", range(3))
def test_mutated_logs_are_read_or_refused(tmp_path: Path, name: str, seed: int) -> None:
    chance = random.Random(f"{name} {seed}")
    suffix = {"jsonl": ".jsonl", "delimited": ".csv"}.get(
        name, ".json" if name == "trainer_state" else ".log"
    )
    path = tmp_path / f"log{suffix}"
    read_before = 0
    for _ in range(25):
        content = bytearray(SAMPLES[name].encode())
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(content) or 1)
            match chance.randrange(6):
                case 0:
                    content[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    del content[at : at + chance.randrange(200)]
                case 2:
                    content[at:at] = chance.choice([
                        b"\0",
                        b"\r",
                        b"\x1b[31m",
                        b"\xff\xfe",
                        b"[" * 300,
                        b"9" * 500,
                    ])
                case 3:
                    content[at:at] = content[: chance.randrange(400)]
                case 4:
                    content = content[:at] or content
                case _:
                    content[at:at] = chance.choice([
                        b'{"',
                        b"'",
                        b'"',
                        b"}",
                        b"1e999",
                        b"nan",
                        b"{'a': " * 300,
                    ])
        path.write_bytes(gzip.compress(bytes(content)) if chance.random() < 0.1 else bytes(content))
        try:
            assert isinstance(read_log(path).rows, pl.DataFrame)
            read_before += 1
        except InputError as error:
            assert error.path == path and "\n" not in str(error)
    assert read_before > 2


@pytest.mark.parametrize("name", SAMPLES)
def test_colours_and_control_characters_are_not_there(tmp_path: Path, name: str) -> None:
    if name in {"delimited", "trainer_state"}:
        pytest.skip("never written to a terminal")
    path = tmp_path / "plain.log"
    path.write_text(SAMPLES[name])
    plain = read_log(path)
    coloured = tmp_path / "coloured.log"
    lines = SAMPLES[name].splitlines()
    coloured.write_bytes("".join(f"\x1b[2K\x1b[1;31m{line}\x1b[0m\x07\r\n" for line in lines).encode())
    log = read_log(coloured)
    assert log.formats == (name,) and log.rows.equals(plain.rows)


def test_lines_of_any_length_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with path.open("wb") as file:
        file.write(b"first\n" + b"x" * (3 * LONGEST_LINE) + b"\nthird\r\nfourth\rfifth\n")
        file.seek(300_000_000, os.SEEK_CUR)  # a hole: zeros without a line end
        file.write(b"\nlast")
    lines = Lines(path)
    assert list(lines) == ["first", "third", "fourth", "fifth", "last"]
    assert lines.overlong == 2 and lines.unended and not lines.blocks.cut


def test_two_byte_text_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_bytes("step=1 loss=2\nstep=2 loss=3\n".encode(encoding))
        assert list(Lines(path)) == ["step=1 loss=2", "step=2 loss=3"]
        assert head(path, 6) == "step=1" or encoding == "utf-16"


def test_a_compressed_file_that_is_cut_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "log.txt.gz"
    packed = gzip.compress("".join(f"step={s} loss={s / 8}\n" for s in range(1, 9000)).encode())
    path.write_bytes(packed[: len(packed) // 2])
    log = read_log(path)
    assert 100 < log.rows.height < 8999 and "ends too early" in log.notes[0]
