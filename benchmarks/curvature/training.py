"""Train the measured model in about a minute on the source text of Python's standard library."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.curvature.model import LENGTH, VOCABULARY, Decoder, NextToken, Size

EVERY, ROWS, LEARNING_RATE, WARM_UP = 10, 16, 2e-3, 20
_BYTES = 1 << 21


@cache
def text() -> Tensor:
    """Read the source files of the standard library, in the order of their names.

    Returns:
        [bytes], int64; what is not ASCII is left out.
    """
    read = bytearray()
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        read += bytes(byte for byte in file.read_bytes() if byte < VOCABULARY)
        if len(read) > _BYTES:
            break
    return torch.frombuffer(read, dtype=torch.uint8).long()


def draw(rows: int, seed: int) -> Tensor:
    """Draw rows of text.

    Returns:
        [rows, LENGTH], int64.
    """
    source = text()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(source) - LENGTH, (rows,), generator=generator)
    return torch.stack([source[start : start + LENGTH] for start in starts.tolist()])


def train(size: Size, cache_folder: Path) -> Path:
    """Train with AdamW and keep a checkpoint every 10 steps; what was trained before is not trained again.

    Returns:
        The folder of checkpoints.
    """
    folder = cache_folder / f"width-{size.width}-blocks-{size.blocks}-steps-{size.steps}"
    done = folder / "loss.txt"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    module = Decoder(size).initialise(torch.Generator().manual_seed(0))
    criterion = NextToken()
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, size.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / WARM_UP)
        tokens = draw(ROWS, seed=step)
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(module(tokens), tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % EVERY == 0:
            save_file(module.state_dict(), folder / f"step-{step:06d}.safetensors")
    done.write_text(f"{float(loss.detach()):.3f}\n", encoding="utf-8")
    return folder


def checkpoint(size: Size, folder: Path, step: int) -> Decoder:
    """Load a checkpoint.

    Returns:
        The module in eval mode.
    """
    module = Decoder(size)
    module.load_state_dict(load_file(folder / f"step-{step:06d}.safetensors"))
    return module.eval()
