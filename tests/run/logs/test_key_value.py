from __future__ import annotations

import math
from pathlib import Path

import pytest

from hnf_offline.errors import InputError
from hnf_offline.run.logs import format_of, read_log


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("step={0} loss={1} lr=1e-4", {"learning_rate": 1e-4}),
        ("step: {0}, loss: {1}, lr: 0.0001", {"learning_rate": 1e-4}),
        ("Epoch [1/5], Step [{0}/600], Loss: {1}", {"Epoch": 1.0}),
        ("[Epoch 1][Step {0}] loss: {1}", {"Epoch": 1.0}),
        ("Step {0} | loss:{1} lr:0.0003 tokens_per_second_per_gpu:120.5", {"throughput": 120.5}),
        ("Epoch 1 | iter 9 step {0} | loss train: {1}, val: n/a | iter time: 20.15 ms", {"step_time": 20.15}),
        (
            "\x1b[31mstep:  {0}  \x1b[32mloss:  {1}  \x1b[34mtps: 1,234  mfu: 1.0%\x1b[39m",
            {"throughput": 1234.0},
        ),
        (
            "2024-05-01 10:00:00,123 - root - INFO - step: {0}  loss: {1}  memory: 5.2GiB(5.5%)",
            {"memory": 5.2},
        ),
        ("INFO Iteration {0}: loss = {1}, grad norm 2.5", {"grad_norm": 2.5}),
        ("(step=000{0}) Train Loss: {1}, Train Steps/Sec: 1.23", {"Train Steps/Sec": 1.23}),
        ("loss=tensor({1}, device='cuda:0') global_step={0}", {}),
        ("[rank0]: step {0}, val_loss 9.5, loss {1}", {"val_loss": 9.5}),
        ("step {0} loss {1}", {}),
    ],
)
def test_spellings(tmp_path: Path, line: str, more: dict[str, float]) -> None:
    path = tmp_path / "train.out"
    noise = "Loading model: loss_type=ce, eval_steps=500\nwarning: nothing is lost\n"
    path.write_text(
        noise + "".join(line.format(step, loss) + "\n" for step, loss in ((1, 2.5), (2, "nan"), (30, 3e-2)))
    )
    log = read_log(path)
    assert log.formats == ("key_value",) and log.rows["step"].to_list() == [1, 2, 30]
    assert log.rows["loss"][0] == 2.5 and math.isnan(log.rows["loss"][1]) and log.rows["loss"][2] == 0.03
    for name, value in more.items():
        assert log.rows[name][0] == value, name


def test_a_block_a_step(tmp_path: Path) -> None:
    path = tmp_path / "olmo.log"
    block = (
        "2024-02-01 12:00:00 host:0 olmo.train:700 INFO [step={0}/739,328,epoch=0]\n"
        "    optim/total_grad_norm=1.5\n    train/CrossEntropyLoss={1}\n    train/Perplexity=9,999\n"
    )
    path.write_text(
        "".join(block.format(step, loss) for step, loss in ((1, 11.25), (2, 10.5))) + "done loss=3\n"
    )
    log = read_log(path)
    assert log.rows["step"].to_list() == [1, 2] and log.rows["loss"].to_list() == [11.25, 10.5]
    assert (
        log.rows["grad_norm"].to_list() == [1.5, 1.5]
        and log.rows["train/Perplexity"].to_list() == [9999.0] * 2
    )
    assert log.duplicates == 0


def test_progress_bars_say_a_step_once(tmp_path: Path) -> None:
    path = tmp_path / "lightning.log"
    line = "\rEpoch {0}:  50%|###  | {1}/100 [00:05<00:05,  9.87it/s, v_num=0, train_loss={2}{3}]"
    path.write_text(
        line.format(0, 0, 9, "") + line.format(0, 50, 2.5, "") + line.format(0, 50, 2.5, "")
        + line.format(0, 100, 2.25, "") + line.format(0, 100, 2.25, ", val_loss=3.5") + line.format(1, 50, 2.0, "")
    )  # fmt: skip
    log = read_log(path)
    assert log.rows["step"].to_list() == [50, 100, 150] and log.rows["loss"].to_list() == [2.5, 2.25, 2.0]
    assert log.rows["val_loss"].to_list() == [None, 3.5, None] and log.duplicates == 0


def test_a_place_in_an_epoch_stands_for_the_step(tmp_path: Path) -> None:
    path = tmp_path / "imagenet.log"
    line = "Epoch: [{0}][ {1}/100]\tTime  0.205 ( 0.300)\tLoss {2} (6.9e+00)\tAcc@1   0.00 (  0.10)\n"
    path.write_text(
        "".join(line.format(*row) for row in ((0, 10, "6.9e+00"), (0, 20, "6.5e+00"), (1, 10, "6.0e+00")))
    )
    log = read_log(path)
    assert log.rows["step"].to_list() == [10, 20, 110] and log.rows["loss"].to_list() == [6.9, 6.5, 6.0]
    assert "counted on through the epochs" in log.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "def train(step=0, loss=0.0, learning_rate=1e-3, name='x'): return step\ndef f(step=1, loss=2): pass\n",
        "At step 100 the loss was 2.3, and at step 200 the loss was 2.2; we stopped there since the loss rose.\n",
        "eval_steps: 500\nlogging_steps: 10\nloss: cross_entropy\nloss_scale: 0\nlearning_rate: 0.1\n",
        "Namespace(step=5, steps=100, loss='ce', lr=0.1)\n",
        "config step=1 loss=2\n",
        "# step loss\n",
        "step: 1, val_loss: 3.0\nstep: 2, val_loss: 2.0\n",
        "a\n" * 1000,
    ],
)
def test_prose_source_and_settings_are_no_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    assert format_of(path) is None
    with pytest.raises(InputError, match=r"no log of a known format; known are .*megatron"):
        read_log(path)


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.log"
    path.write_text("".join(f"n={step} objective={step / 2}\n" for step in range(1, 9)))
    with pytest.raises(InputError, match="no log of a known format"):
        read_log(path)
    log = read_log(path, {"step": "n", "loss": "objective"})
    assert log.rows["loss"].to_list() == [step / 2 for step in range(1, 9)]


def test_a_loss_of_many_digits_is_read(tmp_path: Path) -> None:
    # What fp16 gives before it overflows, printed as %.4f.
    path = tmp_path / "train.out"
    losses = (2.5, 3.46108866256396515301600991903744e32, float("inf"), -1e38, 2.4)
    path.write_text("".join(f"step={step} loss={loss:.4f}\n" for step, loss in enumerate(losses)))
    log = read_log(path)
    assert log.rows["loss"].to_list() == pytest.approx(list(losses))
