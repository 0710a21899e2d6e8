"""What a followed run is told while it grows is what the finished run gives afterwards, line by line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hnf_offline.cli import main
from hnf_offline.errors import InputError

from .conftest import ROOT, Grown, append, save

SPIKY = ROOT / "sample_runs" / "spiky"
LAST = 273  # of the copy: eleven checkpoints, a forecast, a crossing, a spike, Adam's lag, and the end of the spike


def afterwards(run: Path, tier: str, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """What `hnf monitor` says of the finished run."""
    capsys.readouterr()
    assert (
        main(["monitor", str(run), "--tier", tier, "--quiet", "--out", str(run.parent / "after"), *options])
        == 0
    )
    return capsys.readouterr().out.splitlines()


def log_lines(run: Path = SPIKY) -> dict[int, str]:
    text = (run / "log.jsonl").read_text(encoding="utf-8")
    return {json.loads(line)["step"]: line + "\n" for line in text.splitlines()}


def rows(log: Path, first: int, last: int) -> Callable[[], None]:
    lines = log_lines()
    return lambda: append(log, "".join(lines[step] for step in range(first, last + 1)))


def test_the_lines_told_on_the_way_are_those_of_the_finished_run(
    grown: Grown, capsys: pytest.CaptureFixture[str]
) -> None:
    run, lines = grown.run, log_lines()
    log = run / "log.jsonl"
    for name in ("config.json", "batches.safetensors"):
        shutil.copyfile(SPIKY / name, run / name)
    append(log, "".join(lines[step] for step in range(1, 157)))
    save(SPIKY / "checkpoints" / "step-000156", run / "checkpoints" / "step-000156")
    seen_at: dict[str, int] = {}
    now = [156]

    def trainer() -> Iterator[Callable[[], None]]:
        # Training goes on while a checkpoint is written: first its weights are cut, then the optimizer is missing.
        writing: dict[int, Callable[[], None]] = {}
        for step in range(156, LAST + 1):
            saved, target = (
                SPIKY / "checkpoints" / f"step-{step:06d}",
                run / "checkpoints" / f"step-{step:06d}",
            )
            if saved.is_dir() and not target.exists() and step < LAST:
                whole = (saved / "model.safetensors").read_bytes()
                target.mkdir()
                (target / "model.safetensors").write_bytes(whole[: len(whole) // 2])
                writing[step + 7] = partial(save, saved, target, lambda name: name.startswith("model"))
                writing[step + 9] = partial(save, saved, target)
            if step in writing:
                yield writing.pop(step)
            if step == LAST:
                return
            # Half a row first.
            line = lines[step + 1]
            cut = line.index('"loss": ') + len('"loss": 0.1')
            now[0] = step + 1
            if step % 12 == 6:
                yield partial(append, log, line[:cut])
                yield partial(append, log, line[cut:])
            else:
                append(log, line)

    def noted() -> None:
        for line in grown.lines:
            seen_at.setdefault(line, now[0])

    told = grown.follow(trainer_steps(trainer()), after_pause=noted)
    assert told == afterwards(run, "stability", capsys)
    assert any("[WARNING] Step 192: stability ratio" in line for line in told)
    assert any(line.startswith("[SPIKE] Step 210: loss 0.198 -> 0.293") for line in told)
    assert any(line.startswith("[RECOVERED] Step 270: ") and "2.05 at step 219" in line for line in told)
    assert len(set(told)) == len(told) and grown.notes == []
    assert grown.measured == list(range(156, LAST, 12)), "each once, in order"
    # They came on the way: once the checkpoint of their step, or the one before it, was whole and measured.
    spike = next(line for line in told if line.startswith("[SPIKE] Step 210"))
    forecast = next(line for line in told if line.startswith("[WARNING] Step 192"))
    assert 210 <= seen_at[spike] <= 214 and 192 <= seen_at[forecast] <= 203


def trainer_steps(work: Iterator[Callable[[], None]]) -> Iterator[Callable[[], None]]:
    """Let the trainer work on in each pause until its next wait, and rest two looks after each of these."""
    for one in work:
        yield one
        yield lambda: None


def only_log(grown: Grown, first: int, last: int) -> Path:
    log = grown.run / "train.jsonl"
    rows(log, first, last)()
    return log


def test_a_log_alone_is_followed(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    log = only_log(grown, 1, 100)
    script = [rows(log, first + 1, first + 50) for first in range(100, 600, 50)]
    told = grown.follow(script)
    assert told == afterwards(grown.run, "stability", capsys)
    assert [line.split(":")[0] for line in told if line.startswith("[SPIKE]")] == [
        "[SPIKE] Step 210",
        "[SPIKE] Step 392",
        "[SPIKE] Step 566",
    ]
    assert not (grown.out / "profile").exists()


def spelled_csv(step: int, row: dict[str, float]) -> str:
    head = "step,loss,grad_norm,lr\n" if step == 1 else ""
    return head + f"{step},{row['loss']},{row['grad_norm']},{row.get('lr', 0.001)}\n"


def spelled_text(step: int, row: dict[str, float]) -> str:
    return f"step={step} loss={row['loss']:.6f} grad_norm={row['grad_norm']:.5f}\n"


def spelled_console(step: int, row: dict[str, float]) -> str:
    return f"{{'step': {step}, 'loss': {row['loss']}, 'grad_norm': {row['grad_norm']}, 'epoch': 0.5}}\n"


@pytest.mark.parametrize(
    ("name", "spelled"),
    [("metrics.csv", spelled_csv), ("train.log", spelled_text), ("console.log", spelled_console)],
)
def test_a_log_of_another_format_is_followed(
    name: str,
    spelled: Callable[[int, dict[str, float]], str],
    grown: Grown,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Written through a buffer, so that it ends within a line most of the time; and resumed at step 420."""
    log = grown.run / name
    steps = {step: json.loads(line) for step, line in log_lines().items() if step <= 480}
    text = "".join(spelled(step, row) for step, row in steps.items())
    resumed = text + "".join(spelled(step, steps[step]) for step in range(421, 481))
    append(log, resumed[:777])
    pieces = [resumed[start : start + 3_001] for start in range(777, len(resumed), 3_001)]
    told = grown.follow([partial(append, log, piece) for piece in pieces])
    after = afterwards(grown.run, "stability", capsys)
    # The row that went back may have come in a look of its own: what had been told stays told.
    assert sorted(told) == sorted(after) and any("RESTART] Step 421" in line for line in told)
    assert [line.split(":")[0] for line in told if line.startswith("[SPIKE]")] == [
        "[SPIKE] Step 210",
        "[SPIKE] Step 392",
    ]


def test_trainer_state_is_followed(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    """Written whole at every save; half of it is what was read before."""
    state = grown.run / "trainer_state.json"
    steps = [json.loads(line) for line in log_lines().values()]
    rows_of = [{"step": one["step"], "loss": one["loss"], "grad_norm": one["grad_norm"]} for one in steps]

    def written(last: int, part: float = 1.0) -> Callable[[], None]:
        text = json.dumps({"log_history": rows_of[:last], "global_step": last}, indent=1)
        return lambda: state.write_text(text[: int(part * len(text))])

    written(100)()
    script = [written(last, part) for last in range(150, 481, 30) for part in (0.4, 1.0)]
    told = grown.follow(script)
    assert told == afterwards(grown.run, "stability", capsys)
    assert sum(line.startswith("[SPIKE]") for line in told) == 2 and not any("RESTART" in one for one in told)


def test_looks_at_a_log_find_the_checkpoints_once(grown: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are gone through again only where something but the log has changed."""
    from hnf_offline.run import formats

    found: list[int] = []
    before = formats.find

    def counted(path: Path, glob: str | None = None) -> object:
        found.append(grown.pauses)
        return before(path, glob)

    monkeypatch.setattr(formats, "find", counted)
    run, lines = grown.run, log_lines()
    for name in ("config.json", "batches.safetensors"):
        shutil.copyfile(SPIKY / name, run / name)
    log = run / "log.jsonl"
    append(log, "".join(lines[step] for step in range(1, 158)))
    save(SPIKY / "checkpoints/step-000156", run / "checkpoints/step-000156")
    more = [partial(append, log, lines[step]) for step in range(158, 172)]
    late = partial(save, SPIKY / "checkpoints/step-000168", run / "checkpoints/step-000168")
    grown.follow([*more, late, *[lambda: None] * 7], tier="forward")
    assert grown.measured == [156, 168]
    assert len([pause for pause in found if 2 < pause < len(more)]) == 0
    assert len(more) + 1 in found


def test_the_log_file_itself_is_followed(grown: Grown) -> None:
    log = only_log(grown, 1, 205)
    grown.run = log
    assert any(line.startswith("[SPIKE] Step 210") for line in grown.follow([rows(log, 206, 215)]))


def test_a_rotated_log_goes_on_where_it_was(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    log = only_log(grown, 1, 300)

    def rotate() -> None:
        log.rename(grown.run.parent / "train.jsonl.1")  # out of sight
        rows(log, 301, 380)()

    told = grown.follow([rotate, rows(log, 381, 480)])
    whole = grown.run.parent / "whole"
    whole.mkdir()
    rows(whole / "train.jsonl", 1, 480)()
    assert told == afterwards(whole, "stability", capsys)
    assert any(line.startswith("[SPIKE] Step 392") for line in told)


@pytest.mark.parametrize("appended", [True, False])
def test_a_run_that_starts_again_is_told_and_nothing_is_said_twice(appended: bool, grown: Grown) -> None:
    log = only_log(grown, 1, 250)

    def again() -> None:
        if not appended:
            log.unlink()
        rows(log, 201 if appended else 1, 205)()

    # The second attempt goes through the same spike with the same losses, and on to another.
    told = grown.follow([lambda: None, again, lambda: None, rows(log, 206, 400)])
    first = 201 if appended else 1
    assert f"[RESTART] Step {first}: the run starts again here" in told
    assert len(set(told)) == len(told)
    assert sum(line.startswith("[SPIKE] Step 210") for line in told) == 1
    assert any(line.startswith("[SPIKE] Step 392") for line in told)
    assert told.index(f"[RESTART] Step {first}: the run starts again here") > told.index(
        next(line for line in told if line.startswith("[SPIKE] Step 210"))
    )


def test_an_abandoned_attempt_says_nothing_of_the_new_one(grown: Grown) -> None:
    """Rows that an earlier attempt wrote beyond the new one are no jump of the new one's loss."""
    lines = [f'{{"step": {step}, "loss": {2 + 0.01 * (step % 3)}}}\n' for step in range(1, 201)]
    high = [f'{{"step": {step}, "loss": {8 + 0.01 * (step % 3)}}}\n' for step in range(101, 201)]
    log = grown.run / "train.jsonl"
    append(log, "".join(lines[:100] + high))
    script = [
        lambda: append(log, "".join(lines[90:120])),  # resumed before the jump, without it
        lambda: append(log, "".join(lines[120:150])),
    ]
    told = grown.follow(script)
    assert [line.split(":")[0] for line in told] == ["[SPIKE] Step 101", "[RESTART] Step 91"]


def test_a_loss_that_becomes_nan_is_told_at_once(grown: Grown, capsys: pytest.CaptureFixture[str]) -> None:
    log = only_log(grown, 1, 150)
    broken = "".join(f'{{"step": {step}, "loss": NaN, "grad_norm": NaN}}\n' for step in range(151, 156))
    told = grown.follow([lambda: append(log, broken)], idle=1000)
    assert told == afterwards(grown.run, "stability", capsys)
    assert "[SPIKE] Step 151: loss 0.340 -> NaN" in told
    assert any("gradient norm has not been finite for 3 logged steps at step 153" in line for line in told)
    assert [one.tag for one in grown.told[1]] == ["spike", "danger"], (
        "in the look after the rows, not at the end"
    )


def test_a_row_without_its_end_is_not_read_before_the_end(grown: Grown) -> None:
    log = only_log(grown, 1, 200)
    # A number that is cut reads as a smaller one, and a step that is cut as an earlier step.
    told = grown.follow([lambda: append(log, '{"step": 201, "loss": 1')] + [lambda: None] * 8, idle=1000)
    assert not any("SPIKE" in line or "RESTART" in line for line in told)
    csv = grown.run / "train.csv"
    log.unlink()
    text = "step,loss\n" + "".join(f"{step},{2 + 0.001 * (step % 5):.4f}\n" for step in range(1, 1201))
    csv.write_text(text)
    grown.told.clear()
    told = grown.follow([lambda: append(csv, "1201,9"), *[lambda: None] * 8, lambda: append(csv, "e-1\n")])
    assert told == []


def test_a_checkpoint_that_stays_broken_is_told_once_and_later_ones_are_measured(grown: Grown) -> None:
    run, lines = grown.run, log_lines()
    for name in ("config.json", "batches.safetensors"):
        shutil.copyfile(SPIKY / name, run / name)
    append(run / "log.jsonl", "".join(lines[step] for step in range(1, 160)))
    checkpoints = run / "checkpoints"

    def cut() -> None:
        save(SPIKY / "checkpoints/step-000156", checkpoints / "step-000156")
        weights = checkpoints / "step-000156" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])

    def later() -> None:
        save(SPIKY / "checkpoints/step-000168", checkpoints / "step-000168")
        append(run / "log.jsonl", "".join(lines[step] for step in range(160, 172)))

    checkpoints.mkdir()
    grown.follow([cut, lambda: None, lambda: None, later, *[lambda: None] * 8], tier="forward", idle=1000)
    assert len(grown.notes) == 1 and "step-000156" in grown.notes[0] and "skipped" in grown.notes[0]
    assert grown.measured == [168]


def test_a_checkpoint_replaced_by_another_attempt_is_measured_again(grown: Grown) -> None:
    run, lines = grown.run, log_lines()
    for name in ("config.json", "batches.safetensors"):
        shutil.copyfile(SPIKY / name, run / name)
    append(run / "log.jsonl", "".join(lines[step] for step in range(1, 181)))
    target = run / "checkpoints" / "step-000156"
    save(SPIKY / "checkpoints/step-000156", target)

    def again() -> None:
        save(SPIKY / "checkpoints/step-000168", target)  # other weights, the same name
        append(run / "log.jsonl", "".join(lines[step] for step in range(150, 161)))

    grown.follow([*[lambda: None] * 8, again], tier="forward")
    assert grown.measured == [156, 156]


def test_what_was_there_before_is_told_at_the_first_look(grown: Grown) -> None:
    run, lines = grown.run, log_lines()
    for name in ("config.json", "batches.safetensors"):
        shutil.copyfile(SPIKY / name, run / name)
    append(run / "log.jsonl", "".join(lines[step] for step in range(1, 161)))
    target = run / "checkpoints" / "step-000156"
    save(SPIKY / "checkpoints/step-000156", target)
    for file in target.iterdir():
        os.utime(file, (1, 1))
    grown.follow([], tier="forward")
    assert grown.measured == [156]
    assert any("danger band" in one.text for one in grown.told[0])


def test_a_folder_that_is_still_empty_is_waited_for(grown: Grown) -> None:
    log = grown.run / "train.jsonl"
    told = grown.follow([lambda: None, lambda: None, rows(log, 1, 215)], idle=1000)
    assert any(line.startswith("[SPIKE] Step 210") for line in told)
    assert len(grown.notes) == 1 and grown.notes[0].endswith("waiting for it")


def test_nothing_that_can_be_read_until_the_end_is_an_error(grown: Grown) -> None:
    (grown.run / "noise.bin").write_bytes(b"\x00\xff" * 50)
    with pytest.raises(InputError, match="live"):
        grown.follow([])
