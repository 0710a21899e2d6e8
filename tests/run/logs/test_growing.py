"""A log that is read while it grows gives, at every look, what reading it anew gives; and reads only what is new."""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from hnf_offline.errors import InputError
from hnf_offline.run import logs
from hnf_offline.run.logs import blocks, read_log, tensorboard
from hnf_offline.run.logs.event_records import masked_crc32c
from hnf_offline.run.logs.growing import Memory, remembering
from hnf_offline.run.logs.lines import only_whole_lines
from hnf_offline.run.records import Log


def loss(step: int) -> float:
    return 2.0 + 0.1 * ((step * 37) % 11)


def jsonl(step: int) -> str:
    if step % 9 == 4:
        return json.dumps({"step": step, "eval/loss": loss(step)}) + "\n"
    value = "NaN" if step % 13 == 5 else f"{loss(step):.4f}"
    return f'{{"step": {step}, "loss": {value}, "optimizer": {{"lr": 0.001}}, "note": "schön"}}\n'


def csv(step: int) -> str:
    head = "step,loss,lr,remark\n" if step == 1 else ""
    return head + f'{step},{"" if step % 7 == 2 else f"{loss(step):.4f}"},0.001,"a, {step}\nb"\n'


def key_value(step: int) -> str:
    more = "gradient overflow detected, skipping step, loss scale to 32.0\n" if step % 8 == 3 else ""
    return f"step={step} loss={loss(step):.4f} lr=0.001\n{more}"


def progress_bar(step: int) -> str:
    before = f"\rEpoch 0:  10%|#         | {step}/100 [00:05<00:05, 9.87it/s, loss={loss(step - 1):.3f}]"
    return before + f"\rEpoch 0:  10%|#         | {step}/100 [00:05<00:05, 9.87it/s, loss={loss(step):.3f}]"


def olmo(step: int) -> str:
    return f"[step={step}/900,epoch=0]\n    train/CrossEntropyLoss={loss(step):.4f}\n    optim/lr=0.001\n"


def console(step: int) -> str:
    row = {
        "loss": f"{loss(step):.4f}",
        "grad_norm": "0.5",
        "learning_rate": "5e-05",
        "epoch": f"{step / 50:.2f}",
    }
    return f"{row}\n\r {step}%|#  | {step}/100 [00:05<00:45,  2.0it/s]\n"


def megatron(step: int) -> str:
    head = f" iteration {step:8d}/ 900 | elapsed time per iteration (ms): 9.5 |"
    return f"{head} lm loss: {loss(step):.6E} | grad norm: 1.2 |\n"


def nanogpt(step: int) -> str:
    evaluation = f"step {step}: train loss {loss(step):.4f}, val loss 2.5000\n" if step % 10 == 0 else ""
    return f"{evaluation}iter {step}: loss {loss(step):.4f}, time 12.30ms, mfu 1.20%\n"


def build_nanogpt(step: int) -> str:
    evaluation = "validation loss: 2.5000\n" if step % 10 == 0 else ""
    row = f"step {step:5d} | loss: {loss(step):.6f} | lr 6.0e-04 | norm: 1.0 | dt: 9.50ms | tok/sec: 900.00\n"
    return evaluation + row


def llm_c(step: int) -> str:
    row = f"step {step:4d}/900 | train loss {loss(step):.6f} | norm 1.0 | lr 7.0e-04 | (4.4 ms | 58k tok/s)\n"
    return row + "val loss 2.5\n"


def modded(step: int) -> str:
    return f"step:{step}/900 val_loss:{loss(step):.4f} train_time:900ms step_avg:9.5ms\n"


def fairseq(step: int) -> str:
    row = {"epoch": 1, "loss": f"{loss(step):.3f}", "num_updates": str(step), "lr": "0.001"}
    return f"2026-11-28 10:00:00 | INFO | train_inner | {json.dumps(row)}\n"


#: Name of the file, and the text of a step.
FORMATS: dict[str, tuple[str, Callable[[int], str]]] = {
    "jsonl": ("log.jsonl", jsonl),
    "csv": ("metrics.csv", csv),
    "key_value": ("train.log", key_value),
    "progress_bar": ("out.log", progress_bar),
    "olmo": ("olmo.log", olmo),
    "console": ("console.log", console),
    "megatron": ("megatron.log", megatron),
    "nanogpt": ("nanogpt.log", nanogpt),
    "build_nanogpt": ("build.log", build_nanogpt),
    "llm_c": ("main.log", llm_c),
    "modded_nanogpt": ("modded.log", modded),
    "fairseq": ("fairseq.log", fairseq),
}


class Looks:
    """Reads one log again and again, in one memory and anew."""

    def __init__(self, path: Path) -> None:
        self.path, self.memory = path, Memory()

    def look(self, *, final: bool = False) -> Log | str:
        anew = self._read(final)
        with remembering(self.memory):
            remembered = self._read(final)
        if isinstance(anew, Log) and isinstance(remembered, Log):
            assert_frame_equal(remembered.rows, anew.rows)
            assert (remembered.restarts, remembered.duplicates) == (anew.restarts, anew.duplicates)
            assert remembered.notes == anew.notes
            if final:  # half a quoted cell spoils the count of lines, of a file read anew, until it is whole
                assert remembered.skipped_lines == anew.skipped_lines
            return remembered
        assert remembered == anew
        return anew

    def _read(self, final: bool) -> Log | str:
        try:
            if final:
                return read_log(self.path)
            with only_whole_lines():
                return read_log(self.path)
        except InputError as error:
            return str(error)


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_every_look_gives_what_reading_it_anew_gives(form: str, seed: int, tmp_path: Path) -> None:
    """Whatever the pieces in which it is written: in the middle of a line, of a letter, of a quoted cell."""
    name, spelled = FORMATS[form]
    draw = random.Random(seed)
    looks = Looks(tmp_path / name)
    text = "".join(spelled(step) for step in [*range(1, 60), *range(41, 90)]).encode()
    place = 0
    looks.path.touch()
    while place < len(text):
        size = draw.choice([1, 3, 40, 200, 900])
        append(looks.path, text[place : place + size])
        place += size
        looks.look()
    seen = looks.look(final=True)
    assert isinstance(seen, Log) and seen.rows["step"][-1] == 89 and seen.rows["loss"].count() > 60


@pytest.mark.parametrize("form", ["jsonl", "csv", "key_value", "console"])
def test_a_look_reads_what_was_appended_and_nothing_else(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, spelled = FORMATS[form]
    looks = Looks(tmp_path / name)
    # A file that is long enough is of the format that it begins with.
    monkeypatch.setattr(logs, "_LONG_HEAD", 200_000)
    many = 210_000 // len(spelled(5)) + 1
    append(looks.path, "".join(map(spelled, range(1, many))).encode())
    read = [0]
    before = blocks.Blocks._piece

    def counted(self: blocks.Blocks, file: object) -> bytes:
        piece = before(self, file)  # type: ignore[arg-type]
        read[0] += len(piece)
        return piece

    monkeypatch.setattr(blocks.Blocks, "_piece", counted)
    with remembering(looks.memory), only_whole_lines():
        read_log(looks.path)
    assert read[0] == looks.path.stat().st_size
    for step in range(many, many + 30, 10):
        read[0] = 0
        added = "".join(map(spelled, range(step, step + 10))).encode()
        append(looks.path, added)
        with remembering(looks.memory), only_whole_lines():
            log = read_log(looks.path)
        assert read[0] == len(added)
    assert log.rows["step"][-1] >= step + 8
    looks.look(final=True)


def long(first: int, last: int, scale: float = 1.0) -> bytes:
    return "".join(
        f'{{"step": {step}, "loss": {scale * loss(step):.4f}}}\n' for step in range(first, last + 1)
    ).encode()


def test_a_file_replaced_by_another_one_is_read_anew(tmp_path: Path) -> None:
    looks = Looks(tmp_path / "log.jsonl")
    looks.path.write_bytes(long(1, 900))
    looks.look()
    for text in (
        long(1, 300, 2.0),  # shorter
        long(1, 900, 3.0),  # as long as the first, longer than the last
        long(1, 600) + long(601, 900, 3.0),  # cut, and another way from there
        long(1, 600) + long(601, 1200, 4.0),  # the same beginning, longer
        long(1, 1200),
        long(500, 1200),  # its beginning cut away
    ):
        looks.path.write_bytes(text)  # in place
        looks.look()
        beside = tmp_path / "beside"
        beside.write_bytes(text + long(1201, 1210))
        beside.replace(looks.path)  # under the same name
        looks.look()


def test_a_file_cut_to_nothing_or_gone_is_waited_for(tmp_path: Path) -> None:
    looks = Looks(tmp_path / "log.jsonl")
    looks.path.write_bytes(long(1, 300))
    looks.look()
    looks.path.write_bytes(b"")
    assert isinstance(looks.look(), str)
    append(looks.path, long(1, 20, 2.0))
    looks.look()
    looks.path.rename(tmp_path / "log.jsonl.1")
    assert isinstance(looks.look(), str)
    assert not looks.memory._logs, "rows of a file that is gone are not kept"
    looks.path.write_bytes(long(301, 400))
    log = looks.look()
    assert isinstance(log, Log) and log.rows["step"][0] == 301


def test_other_encodings_and_line_ends_are_read_on(tmp_path: Path) -> None:
    text = "".join(f'{{"step": {step}, "loss": {loss(step)}, "note": "schön"}}\r\n' for step in range(1, 80))
    for encoding in ("utf-16", "utf-16-le", "utf-8-sig"):
        looks = Looks(tmp_path / f"{encoding}.jsonl")
        raw = text.encode(encoding)
        for start in range(0, len(raw), 333):
            append(looks.path, raw[start : start + 333])
            looks.look()
        log = looks.look(final=True)
        assert isinstance(log, Log) and log.rows.height == 79


def test_a_compressed_log_is_read_whole_where_it_changed(tmp_path: Path) -> None:
    looks = Looks(tmp_path / "log.jsonl.gz")
    for last in (100, 200, 300):
        with gzip.open(looks.path, "ab") as file:
            file.write(long(last - 99, last))
        log = looks.look()
        assert isinstance(log, Log) and log.rows.height == last


def test_what_did_not_change_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trainer_state.json is written whole: it is read whole, and only where it changed."""
    from hnf_offline.run.logs import trainer_state

    state = tmp_path / "trainer_state.json"
    history = [{"step": step, "loss": loss(step)} for step in range(1, 50)]
    state.write_text(json.dumps({"log_history": history}))
    os.utime(state, (1_000, 1_000))
    looks = Looks(state)
    looks.look()
    with monkeypatch.context() as patched:
        patched.setattr(trainer_state, "open_text", lambda _: pytest.fail("was opened again"))
        with remembering(looks.memory), only_whole_lines():
            assert read_log(state).rows.height == 49
    state.write_text(json.dumps({"log_history": [*history, {"step": 50, "loss": 9.0}]}))
    log = looks.look()
    assert isinstance(log, Log) and log.rows["loss"][-1] == 9.0


def test_a_file_written_again_within_one_tick_of_its_clock_is_seen(tmp_path: Path) -> None:
    """Same size, same time: only what was written long before it was read counts as unchanged."""
    state = tmp_path / "trainer_state.json"
    looks = Looks(state)
    for value in (1.25, 1.75):
        state.write_text(json.dumps({"log_history": [{"step": step, "loss": value} for step in range(1, 9)]}))
        os.utime(state, (2_000_000_000, 2_000_000_000))
        log = looks.look()
        assert isinstance(log, Log) and log.rows["loss"][0] == value


def test_metrics_csv_written_anew_with_more_columns_is_read_anew(tmp_path: Path) -> None:
    """As Lightning's CSVLogger does where a metric comes for the first time."""
    looks = Looks(tmp_path / "metrics.csv")
    rows = [f"{step},{loss(step):.4f}" for step in range(1, 60)]
    looks.path.write_text("step,loss\n" + "\n".join(rows[:30]) + "\n")
    looks.look()
    looks.path.write_text("step,loss,val_loss\n" + "".join(f"{row},\n" for row in rows[:30]) + "30,,2.5\n")
    looks.look()
    append(looks.path, "".join(f"{row},\n" for row in rows[30:]).encode())
    log = looks.look()
    assert isinstance(log, Log) and log.rows["val_loss"].count() == 1 and log.rows["loss"].count() == 59


def event(step: int, tag: str, value: float) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    data = Event(step=step, wall_time=step, summary=summary).SerializeToString()
    head = struct.pack("<Q", len(data))
    return head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", masked_crc32c(data))


@pytest.mark.parametrize("seed", range(2))
def test_event_files_are_read_on(seed: int, tmp_path: Path) -> None:
    """A run and its evaluation side by side, each written now and then; then resumed into a file of its own."""
    draw = random.Random(seed)
    looks = Looks(tmp_path)
    training = tmp_path / "events.out.tfevents.100.host.1.0"
    evaluation = tmp_path / "eval" / "events.out.tfevents.101.host.1.1"
    resumed = tmp_path / "events.out.tfevents.200.host.1.0"
    evaluation.parent.mkdir()
    waiting = {
        training: b"".join(event(step, tag, loss(step)) for step in range(1, 40) for tag in ("loss", "lr")),
        evaluation: b"".join(event(step, "loss", 2.5) for step in range(5, 40, 5)),
    }
    for _ in range(2):
        while any(waiting.values()):
            path = draw.choice([one for one, text in waiting.items() if text])
            size = draw.choice([1, 30, 120, 400])
            append(path, waiting[path][:size])
            waiting[path] = waiting[path][size:]
            looks.look()
        waiting[resumed] = b"".join(event(step, "loss", loss(step)) for step in range(30, 60))
    log = looks.look(final=True)
    assert isinstance(log, Log) and log.rows["step"][-1] == 59 and log.restarts == (30,)
    assert log.rows["eval/loss"].count() == 5, "those that the resumed run did not pass again"


def test_records_of_event_files_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.out.tfevents.100.host.1.0"
    append(file, b"".join(event(step, "loss", loss(step)) for step in range(1, 300)))
    looks = Looks(file)
    looks.look()
    decoded: list[bytes] = []
    before = tensorboard._decoded
    monkeypatch.setattr(tensorboard, "_decoded", lambda data: decoded.append(data) or before(data))
    append(file, event(300, "loss", 9.0) + event(301, "loss", 9.0)[:-3])
    with remembering(looks.memory), only_whole_lines():
        assert read_log(file).rows["step"][-1] == 300
    assert len(decoded) == 1


def test_many_looks_leave_few_frames() -> None:
    from hnf_offline.run.logs.rows import compact

    frames: list[pl.DataFrame] = []
    for number in range(2_000):
        frames = compact([*frames, pl.DataFrame({"step": [float(number)], "loss": [2.0]})])
    assert len(frames) < 15 and pl.concat(frames)["step"].to_list() == list(map(float, range(2_000)))
