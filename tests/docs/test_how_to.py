"""What the how-to pages tell to write into a training script works: their blocks are run around a tiny model."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hnf_offline.run import open_run
from tests.docs.pages import PAGES, ROOT, blocks_of, commands_of

from .following import HOW_TO, STEPS, batches, loss_of, my_model, python_of, run_blocks, script, stability_of

#: Pages whose blocks of Python, TOML and diff are run by the tests below; a new page has to join them.
RUN = {
    "README.md",
    *(
        f"{HOW_TO}/{name}.md"
        for name in ("black-box", "hugging-face-trainer", "lightning", "nanogpt", "notebook", "own-loop")
    ),
}


def test_every_block_of_code_is_run_by_a_test() -> None:
    with_code = {page for page in PAGES if any(blocks_of(page, one) for one in ("python", "toml", "diff"))}
    assert with_code - {"docs/reference/run-toml.md"} == RUN  # its example is read in test_generated.py


def test_a_loop_of_your_own(desk: Path, hnf: Callable[[str], str]) -> None:
    page = f"{HOW_TO}/own-loop.md"
    run_blocks(page, desk, slice(1), **script(my_model(page, desk)))
    run = open_run("runs/mine")
    assert [one.step for one in run.checkpoints] == [10, 20, 30, 40] and run.log is not None
    assert run.log.rows["learning_rate"].to_list()[:3] == pytest.approx([0.001, 0.002, 0.003])
    report, zoom = commands_of(page)
    hnf(report)
    assert stability_of("mine")["value"].is_finite().all() and stability_of("mine").height == 4
    assert "● Exact: 15 losses" in hnf(zoom)


def test_the_readmes_recorder(desk: Path, hnf: Callable[[str], str]) -> None:
    model = my_model(f"{HOW_TO}/own-loop.md", desk)
    space = script(model)
    rows = iter(batches())

    def train_step() -> tuple[Tensor, float]:
        loss = loss_of(model, next(rows))
        space["optimizer"].zero_grad()
        loss.backward()
        space["optimizer"].step()
        return loss, 1.0

    text = python_of("README.md")[0].replace("every=100", "every=10")
    exec(
        compile(text, "README.md", "exec"),
        {**space, "train_step": train_step, "steps": STEPS, "tokens": batches()[0]},
    )
    hnf("hnf report runs/mine --model my_model:build")
    assert stability_of("mine").height == 4


def test_the_black_box_of_a_loop(desk: Path, hnf: Callable[[str], str]) -> None:
    page = f"{HOW_TO}/black-box.md"
    space = script(my_model(f"{HOW_TO}/own-loop.md", desk))
    space["loader"] = [*batches()[:-1], torch.zeros((4, 8), dtype=torch.long)]
    plain = space["loss_of"]
    space["loss_of"] = lambda model, tokens: plain(model, tokens) * (1.0 if tokens.any() else math.nan)
    text = python_of(page)[0].replace("optimizer, training", "optimizer, keep=32, state_every=8, training")
    assert text != python_of(page)[0]
    exec(compile(text, page, "exec"), space)
    (box,) = (desk / "boxes" / "mine").iterdir()
    why = json.loads((box / "config.json").read_text())["frozen"]["why"]
    assert box.name == "frozen-000040" and "step 40: loss is nan" in why
    said = hnf(f"hnf zoom {box} --from 24 --to 39 --model my_model:build")
    assert "● Exact: 15 losses" in said


#: A training script in nanoGPT's words around the lines that the pages change.
NANOGPT = """
import contextlib, os, sys
import numpy as np, torch
from hnf_offline.run.model.gpt import GPT, GPTConfig
out_dir = 'out'
eval_interval = 10
log_interval = 10
always_save_checkpoint = False
gradient_accumulation_steps, batch_size, block_size, grad_clip, max_iters = 2, 2, 256, 1.0, 41
for argument in sys.argv[1:]:  # as its configurator does
    if argument.startswith('--'):
        key, _, value = argument[2:].partition('=')
        globals()[key] = type(globals()[key])(value == 'True' if value in ('True', 'False') else value)
os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(0)
ctx = contextlib.nullcontext()
tokens = torch.from_numpy(np.fromfile('data/shakespeare_char/val.bin', dtype=np.uint16).astype(np.int64))
def get_batch(split):
    rows = torch.stack([tokens[k : k + block_size + 1] for k in torch.randint(len(tokens) - block_size, (batch_size,))])
    return rows[:, :-1], rows[:, 1:]
model_args = dict(n_layer=1, n_head=2, n_embd=8, block_size=block_size, bias=False, vocab_size=32, dropout=0.0)
class Model(GPT):
    def forward(self, x, y):
        logits = super().forward(x)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
raw_model = model = Model(GPTConfig.from_mapping(model_args)).initialise(torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95))
iter_num, best_val_loss = 0, torch.tensor(0.0)
X, Y = get_batch('train')
while True:
    for group in optimizer.param_groups:
        group['lr'] = 0.01 * min(1, (iter_num + 1) / 10)
    if iter_num % eval_interval == 0:
        print(f"step {iter_num}: train loss 3.0000, val loss 3.0000")
        if always_save_checkpoint:
            if iter_num > 0:
                checkpoint = {
                    'model': raw_model.state_dict(), 'optimizer': optimizer.state_dict(), 'model_args': model_args,
                    'iter_num': iter_num, 'best_val_loss': best_val_loss, 'config': {'grad_clip': grad_clip},
                }
                torch.save(checkpoint, os.path.join(out_dir, 'ckpt.pt'))
    for micro_step in range(gradient_accumulation_steps):
        with ctx:
            logits, loss = model(X, Y)
            loss = loss / gradient_accumulation_steps # scale the loss to account for gradient accumulation
        X, Y = get_batch('train')
        loss.backward()
    if grad_clip != 0.0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if iter_num % log_interval == 0:
        print(f"iter {iter_num}: loss {loss.item() * gradient_accumulation_steps:.4f}, time 9.00ms, mfu 1.00%")
    iter_num += 1
    if iter_num > max_iters:
        break
"""


def patched(text: str, page: str) -> str:
    """Apply a page's diffs: of each part the lines that are there are found, and those that shall be put instead."""
    for block in blocks_of(page, "diff"):
        for part in block.text.split("@@\n"):
            lines = part.splitlines()
            old = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
            new = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
            assert text.count(f"\n{old}") == 1, old
            text = text.replace(f"\n{old}", f"\n{new}")
    return text


def nanogpt(desk: Path, page: str, *more: str, box: str = "", typed: tuple[str, ...] = ()) -> str:
    (desk / "data" / "shakespeare_char").mkdir(parents=True)
    drawn = torch.randint(0, 32, (8 * 256,), generator=torch.Generator().manual_seed(2))
    (desk / "data" / "shakespeare_char" / "val.bin").write_bytes(drawn.numpy().astype("uint16").tobytes())
    text = patched(NANOGPT, page).replace("training={", f"{box}training={{")
    (desk / "train.py").write_text("\n".join([text, *more]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-u", "train.py", *typed],
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nanogpt(desk: Path, hnf: Callable[[str], str]) -> None:
    page = f"{HOW_TO}/nanogpt.md"
    (desk / "out").mkdir()
    make, train, report = commands_of(page)
    assert (
        make == "mkdir -p out"
        and train.startswith("python -u train.py ")
        and train.endswith("| tee out/log.txt")
    )
    typed = tuple(shlex.split(train.partition("|")[0])[3:])
    (desk / "out" / "log.txt").write_text(nanogpt(desk, page, typed=typed))
    (rows,) = blocks_of(page, "toml")
    (desk / "rows.toml").write_text(rows.text)
    hnf(report)
    assert stability_of("out")["step"].to_list() == [10, 20, 30, 40]
    run = open_run("out")
    assert run.log is not None and run.log.rows["step"].to_list() == list(range(42))
    findings = json.loads((desk / "reports" / "out" / "findings.json").read_text())
    assert any("off by one" in note for note in findings["run"]["log"]["notes"])


def test_the_black_box_of_nanogpt(desk: Path, hnf: Callable[[str], str]) -> None:
    page = f"{HOW_TO}/black-box.md"
    nanogpt(desk, page, "box.freeze('asked for')", "box.close()", box="keep=32, state_every=8, ")
    (aligned,) = blocks_of(page, "toml")
    (desk / "aligned.toml").write_text(aligned.text)
    line = "hnf zoom boxes/mine/frozen-000042 --from 24 --to 36 --every 6"
    assert "● Exact: 12 losses" in hnf(f"{line} --manifest aligned.toml --out with")
    assert "✕ Not this run" in hnf(f"{line} --out without")


@pytest.mark.parametrize("page", ["README.md", f"{HOW_TO}/notebook.md"])
def test_in_a_notebook(page: str, desk: Path) -> None:
    (text,) = [one for one in python_of(page) if "hnf.open_run" in one]
    if page == "README.md":  # all checkpoints take a minute
        text = text.replace('tier="gradient"', 'tier="gradient", every=20')
    space: dict[str, Any] = {}
    exec(compile(text, page, "exec"), space)
    assert space["profile"].series("gradient.norm").height > 3
    assert space["report"].spikes["onset"].to_list() == [210, 392, 566, 759, 917]
    assert (desk / "reports" / "spiky" / "index.html").is_file()


def test_refused_files(desk: Path, hnf: Callable[..., str]) -> None:
    """Each folder is refused with the words that the page quotes."""
    (desk / "c").mkdir()
    (desk / "c" / "log.csv").write_text("when,what\n" + "".join(f"{k},{k}\n" for k in range(20)))
    (desk / "a").mkdir()
    torch.save({"model": {"w": torch.ones(2, 2)}, "args": SimpleNamespace(a=1)}, "a/ckpt-10.pt")
    (desk / "b" / "checkpoint-10").mkdir(parents=True)
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (desk / "b" / "checkpoint-10" / "model.safetensors.index.json").write_text(json.dumps(index))
    (desk / "d" / "checkpoint-10").mkdir(parents=True)
    (desk / "d" / "checkpoint-10" / "pytorch_model_fsdp_rank0.bin").write_bytes(b"x")
    (desk / "e.pt").write_bytes(b"x")
    text = (ROOT / HOW_TO / "refused-files.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(quoted) >= 9
    for number, name in enumerate(("a", "b", "d", "c", "e.pt")):
        said = hnf(f"hnf report {name}", code=2)
        parts = [part for part in quoted[number].split("...") if part.strip()]
        assert all(part.strip(" ()") in said for part in parts), (quoted[number], said)
    (whole,) = blocks_of(f"{HOW_TO}/refused-files.md", "text")
    assert whole.text == hnf("hnf report c", code=2)
    weights = hnf("hnf report a", code=2)
    line = re.search(r'python -c "(.*)"', weights)
    assert line and "safetensors" in line[1]
