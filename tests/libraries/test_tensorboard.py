from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest

from hnf_offline.errors import InputError
from hnf_offline.run import open_run
from hnf_offline.run.logs import read_log
from hnf_offline.run.logs.event_records import masked_crc32c
from hnf_offline.run.logs.tensorboard import read

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.libraries


def float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def loss(step: int, add: float = 0.0) -> float:
    return {5: math.nan, 6: math.inf}.get(step, float32(4 - step / 50 + add))


def same(found: list[float | None], wanted: list[float]) -> bool:
    return all(
        f == w or (f is not None and math.isnan(f) and math.isnan(w))
        for f, w in zip(found, wanted, strict=True)
    )


def write(folder: Path, first: int, last: int, add: float = 0.0, **options: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), **options) as writer:
        for step in range(first, last + 1):
            writer.add_scalar("train/loss", loss(step, add), step)
            writer.add_scalar("train/grad_norm", step * 2.0, step)
            if step % 10 == 0:
                writer.add_scalar("val/loss", 9.0, step)
                writer.add_scalar("epoch_seconds", 3.0, step // 10)


def test_a_run_comes_back_as_written(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a", 1, 60)
    file = next((tmp_path / "runs" / "a").iterdir())
    for path in (file, file.parent, tmp_path / "runs", tmp_path):
        log = open_run(path).log
        assert log is not None
        assert log.rows["step"].to_list() == list(range(1, 61))
        assert same(log.rows["loss"].to_list(), [loss(step) for step in range(1, 61)])
        assert log.rows["grad_norm"].to_list() == [step * 2.0 for step in range(1, 61)]
        assert log.rows["val/loss"].drop_nulls().to_list() == [9.0] * 6
        assert (log.skipped_lines, log.restarts, log.duplicates) == (0, (), 0)


def test_a_restart_in_the_same_folder_is_one_run(tmp_path: Path) -> None:
    write(tmp_path, 1, 60)
    write(tmp_path, 41, 90, add=1.0)
    write(tmp_path, 91, 100, add=2.0)
    log = read_log(tmp_path)
    assert log.restarts == (41,) and log.duplicates == 20
    wanted = [loss(step, add=0.0 if step < 41 else 1.0 if step < 91 else 2.0) for step in range(1, 101)]
    assert same(log.rows["loss"].to_list(), wanted)
    assert log.rows["val/loss"].drop_nulls().len() == 10


def test_a_restart_that_purges_reads_alike(tmp_path: Path) -> None:
    write(tmp_path, 1, 60)
    write(tmp_path, 41, 90, add=1.0, purge_step=41)
    assert read_log(tmp_path).restarts == (41,)


def test_several_runs_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a", 1, 30)
    write(tmp_path / "runs" / "b", 1, 30, add=1.0)
    with pytest.raises(InputError, match=r"holds 2 TensorBoard runs: a, b; name one of them, such as .*a"):
        read_log(tmp_path / "runs")
    with pytest.raises(InputError, match="2 logs of the same steps: runs/a, runs/b; name one of them"):
        open_run(tmp_path)
    log = open_run(tmp_path / "runs" / "b").log
    assert log is not None and log.rows["loss"][0] == loss(1, add=1.0)


def test_runs_that_go_on_are_one(tmp_path: Path) -> None:
    # The Hugging Face Trainer begins a new folder at every start.
    write(tmp_path / "runs" / "Nov01_host", 1, 60)
    write(tmp_path / "runs" / "Nov02_host", 51, 120, add=1.0)
    log = open_run(tmp_path).log
    assert log is not None and log.rows.height == 120 and log.restarts == (51,)


def test_folders_of_add_scalars_and_hparams_belong_to_the_run(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for first, last, add in ((1, 30, 0.0), (21, 50, 1.0)):
        with SummaryWriter(str(tmp_path)) as writer:
            for step in range(first, last + 1):
                writer.add_scalars("my/loss", {"train": loss(step, add), "val": 7.0}, step)
            writer.add_hparams({"lr": 0.1}, {"hparam/final": 1.0})
    raw = read(tmp_path)
    assert {"my/loss/train", "my/loss/val"} <= set(raw.frame.columns) and raw.notes == ()
    log = read_log(tmp_path, {"loss": "my/loss/train"})
    assert log.restarts == (21,)
    assert same(log.rows["loss"].to_list(), [loss(s, 0.0 if s < 21 else 1.0) for s in range(1, 51)])
    found = open_run(tmp_path, columns={"loss": "my/loss/train"}).log
    assert found is not None and found.rows.height == 50


def test_evaluation_logged_in_a_folder_of_its_own_is_no_training_loss(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for name, value in (("train", 3.0), ("validation", 8.0)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in range(1, 20):
                writer.add_scalar("loss", value, step)
    log = open_run(tmp_path).log
    assert log is not None and set(log.rows["loss"]) == {3.0} and set(log.rows["validation/loss"]) == {8.0}


def test_scalars_kept_as_tensors_and_other_summaries(tmp_path: Path) -> None:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(1, 6):
            writer.add_scalar("loss", loss(step), step, new_style=True)
            writer.add_scalar("double", 0.1 * step, step, new_style=True, double_precision=True)
            writer.add_text("words", "loss: 9", step)
            writer.add_histogram("weights", torch.arange(3.0) * step, step)
        writer.add_image("picture", torch.rand(3, 400, 400), 3)
    raw = read(tmp_path)
    assert raw.frame.columns == ["step", "loss", "double"]
    assert same(raw.frame["loss"].to_list(), [loss(step) for step in range(1, 6)])
    assert raw.frame["double"].to_list() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], rel=1e-6)


def test_numbers_of_every_type_that_tensors_can_have(tmp_path: Path) -> None:
    import numpy as np
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.util.tensor_util import make_tensor_proto

    def record(event: Event) -> bytes:
        data = event.SerializeToString()
        header = len(data).to_bytes(8, "little")
        sums = [masked_crc32c(part).to_bytes(4, "little") for part in (header, data)]
        return header + sums[0] + data + sums[1]

    kinds = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
    content = b""
    for kind in kinds:
        event = Event(step=3)
        event.summary.value.add(tag=kind).tensor.CopyFrom(make_tensor_proto(np.array(3, dtype=kind)))
        # A claim of a billion elements beside one number.
        huge = make_tensor_proto(np.array([3], dtype=kind))
        huge.tensor_shape.dim[0].size = 1_000_000_000
        event.summary.value.add(tag=f"huge {kind}").tensor.CopyFrom(huge)
        content += record(event)
    event = Event(step=3)
    event.summary.value.add(tag="bfloat16").tensor.CopyFrom(TensorProto(dtype=14, half_val=[0x4040]))
    event.summary.value.add(tag="empty").tensor.CopyFrom(TensorProto(dtype=1))
    event.summary.value.add(tag="text").tensor.CopyFrom(make_tensor_proto("3"))
    file = tmp_path / "events.out.tfevents.1.host"
    file.write_bytes(content + record(event))
    frame = read(file).frame
    assert frame.row(0, named=True) == {"step": 3.0, **dict.fromkeys(kinds, 3.0), "bfloat16": 3.0}


def test_a_cut_or_damaged_file_loses_only_what_is_damaged(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, 200)
    file = next((tmp_path / "a").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    log = read_log(tmp_path / "a")
    assert 90 <= log.rows.height <= 110 and log.skipped_lines == 1
    assert "bytes of events.out.tfevents" in read(file).notes[0]
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 0x10
    file.write_bytes(bytes(broken))
    damaged = read_log(file)
    assert damaged.skipped_lines == 1 and damaged.rows["loss"].drop_nulls().len() >= 90
    file.write_bytes(b"")
    with pytest.raises(InputError):
        read_log(file)
    with pytest.raises(InputError, match="holds no scalar"):
        read_log(tmp_path / "a")


def test_it_reads_what_the_library_itself_reads(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 1, 300)
    theirs = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0, "scalars": 0})
    theirs.Reload()
    frame = read(tmp_path).frame
    for tag in theirs.Tags()["scalars"]:
        events = theirs.Scalars(tag)
        ours = frame.select("step", tag).drop_nulls()
        assert ours["step"].to_list() == [event.step for event in events]
        assert same(ours[tag].to_list(), [event.value for event in events])
