from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import pytest

from hnf_offline.errors import InputError, MissingExtraError
from hnf_offline.run import open_run
from hnf_offline.run.logs import format_of, tensorboard
from hnf_offline.run.logs.event_records import LONGEST_RECORD, EventRecords, masked_crc32c
from hnf_offline.run.logs.scalars import Scalars


def framed(data: bytes) -> bytes:
    header = len(data).to_bytes(8, "little")
    return (
        header
        + masked_crc32c(header).to_bytes(4, "little")
        + data
        + masked_crc32c(data).to_bytes(4, "little")
    )


def sound_records(path: Path) -> tuple[list[bytes], int, int]:
    """The records that fit their check sums, how many did not, and the bytes lost at the end."""
    records = EventRecords(path)
    good, damaged = [], 0
    for batch in records:
        fits = records.sound(batch)
        good += [data for (data, _), fit in zip(batch, fits, strict=True) if fit]
        damaged += fits.count(False)
    return good, damaged, records.lost


def test_the_check_sum_is_the_standard_one() -> None:
    # RFC 3720 B.4: CRC-32C of 32 zeros, and the usual check value; masked as TFRecord does.
    for data, crc in ((b"\0" * 32, 0x8A9136AA), (b"123456789", 0xE3069283)):
        assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_many_records_of_many_lengths_are_summed_as_one_is(tmp_path: Path) -> None:
    generator = random.Random(5)
    records = [generator.randbytes(generator.choice([0, 1, 3, 4, 5, 40, 41, 47, 300])) for _ in range(2_000)]
    path = tmp_path / "events.out.tfevents.1.host"
    path.write_bytes(b"".join(map(framed, records)))
    assert sound_records(path) == (records, 0, 0)


def test_a_damaged_record_is_passed_over_and_a_damaged_length_ends_the_file(tmp_path: Path) -> None:
    records = [bytes((number % 251,)) * (20 + number % 3) for number in range(500)]
    whole = b"".join(map(framed, records))
    path = tmp_path / "events.out.tfevents.1.host"
    broken = bytearray(whole)
    broken[len(framed(records[0])) + 14] ^= 4
    path.write_bytes(bytes(broken))
    assert sound_records(path) == ([records[0], *records[2:]], 1, 0)

    broken = bytearray(whole)
    place = sum(len(framed(record)) for record in records[:7])
    broken[place] ^= 4
    path.write_bytes(bytes(broken))
    assert sound_records(path) == (records[:7], 0, len(whole) - place)

    for cut in (1, 5, 30):
        path.write_bytes(whole[:-cut])
        good, damaged, lost = sound_records(path)
        assert good == records[: len(good)] and len(good) >= 498 and damaged == 0 and lost > 0


def test_a_claimed_length_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in (4_000_000_000, 2**63, 2**64 - 1):
        header = length.to_bytes(8, "little")
        path.write_bytes(framed(b"good") + header + masked_crc32c(header).to_bytes(4, "little") + b"x" * 100)
        assert sound_records(path) == ([b"good"], 0, 112)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_large_record_is_passed_over_unread(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    path.write_bytes(framed(b"before") + framed(b"p" * (LONGEST_RECORD + 1)) + framed(b"after"))
    assert sound_records(path) == ([b"before", b"after"], 0, 0)


def test_event_files_are_known_by_name_and_by_beginning(tmp_path: Path) -> None:
    event = framed(b"\x09" + b"\0" * 8 + b"\x1a\x0dbrain.Event:2")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    named = tmp_path / "runs" / "a" / "events.out.tfevents.1744230855.host.5388.4"
    named.write_bytes(event)
    other = tmp_path / "renamed"
    other.write_bytes(event)
    assert [format_of(path) for path in (named, other, tmp_path, named.parent)] == ["tensorboard"] * 4
    assert not tensorboard.is_event_file(Path("events.out.tfevents.1.profile-empty"))
    named.unlink()
    assert format_of(tmp_path / "runs") is None


def test_files_are_read_in_the_order_in_which_they_were_begun() -> None:
    names = [
        f"events.out.tfevents.{name}" for name in ("9.h.1.0", "10.h.1.0", "10.h.1.9", "10.h.1.10", "11.a")
    ]
    assert sorted(map(Path, reversed(names)), key=tensorboard._written) == list(map(Path, names))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    path.write_bytes(framed(b"x"))
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    tensorboard._event.cache_clear()
    with pytest.raises(
        MissingExtraError, match=r"needs the package tensorboard; .*hnf_offline\[tensorboard\]"
    ):
        tensorboard.read(path)
    tensorboard._event.cache_clear()


def test_a_folder_without_event_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no TensorBoard event file"):
        tensorboard.read(tmp_path)


def test_scalars_of_other_counters_are_no_restart_and_a_restart_is_one() -> None:
    scalars = Scalars()
    for step in range(1, 7):
        scalars.add("loss", step * 10, 1.0 * step)
        scalars.add("epoch loss", step, 2.0 * step)
        scalars.add("lr", step * 10, 0.1)
    for step in range(4, 9):
        scalars.add("lr", step * 10, 0.2)
        scalars.add("loss", step * 10, -1.0 * step)
    frame, notes = scalars.table()
    assert frame["step"].to_list() == [1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 60, 40, 50, 60, 70, 80]
    assert frame["loss"].to_list() == [None] * 6 + [1, 2, 3, 4, 5, 6, -4, -5, -6, -7, -8]
    assert frame["epoch loss"].to_list() == [2, 4, 6, 8, 10, 12, *[None] * 11]
    assert frame["lr"].to_list() == [None] * 6 + [0.1] * 6 + [0.2] * 5 and notes == ()


def test_more_names_and_cells_than_fit_are_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from hnf_offline.run.logs import scalars as module

    monkeypatch.setattr(module, "MOST_NAMES", 50)
    monkeypatch.setattr(module, "MOST_CELLS", 200)
    scalars = Scalars()
    for step in range(40):
        for name in ["layer/0", "layer/1", *(f"layer/{n}" for n in range(60)), "never"]:
            scalars.add(name, step, 1.0)
        if step == 0:
            scalars.add("x" * 1_000, step, 1.0)
    first = Scalars()
    for step in range(40):
        for name in (*(f"layer/{n}" for n in range(9)), "train/loss"):
            first.add(name, step, float(step))
    frame, notes = scalars.table()
    assert frame.width == 1 + 5 and len(notes) == 2
    assert notes[0] == "45 of 50 columns were left out: there are too many." and "441 numbers" in notes[1]
    assert "train/loss" in first.table()[0].columns


@pytest.mark.real
def test_real_event_files(data: Path) -> None:
    pytest.importorskip("tensorboard")
    runs = data / "logs" / "tensorboard_lora_roberta" / "runs"
    for number in range(5):
        log = open_run(runs / f"run{number}").log
        assert log is not None and log.rows["step"].to_list() == list(range(100, 1201, 100))
        assert log.skipped_lines == 0 and log.restarts == () and log.notes == ()
        assert log.columns["loss"] == "train/loss" and log.rows["grad_norm"].null_count() == 0
    with pytest.raises(InputError, match="5 logs of the same steps: run0, run1, run2, run3, run4"):
        open_run(runs)
