"""A GPT-2 of 124 million parameters on an ordinary machine: within memory, and one can see how far it is.

By hand: python -m tests.cli.test_large_model FOLDER && hnf profile FOLDER --accuracy screen
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

pytestmark = pytest.mark.skipif(
    "HNF_LARGE_MODEL" not in os.environ,
    reason="takes some 20 minutes of one core and 8 GiB: set HNF_LARGE_MODEL=1 to have it run",
)

TOKENS, LAYERS, PARAMETERS = 256, 99, 124_439_808
#: Between two lines of progress lie 30 s and what cannot be interrupted: one product of the largest layers.
_PART = re.compile(r"layers (\d+) of (\d+).*?(?:ETA (\d+):(\d\d))?$")


def write_run(folder: Path) -> Path:
    """A run of one checkpoint: transformers' GPT-2 as it comes, random weights, one row of 256 tokens."""
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(architectures=["GPT2LMHeadModel"]))
    assert sum(value.numel() for value in module.parameters()) == PARAMETERS
    module.save_pretrained(folder / "checkpoint-0")
    tokens = torch.randint(0, module.config.vocab_size, (1, TOKENS), dtype=torch.int32)
    save_file({"input_ids": tokens}, folder / "batches.safetensors")
    return folder


@dataclass(frozen=True)
class Watched:
    """What a call showed and took.

    Attributes:
        code: its exit code.
        out: stdout.
        lines: (seconds since the start, line on stderr).
        seconds: by the clock on the wall.
        peak: resident bytes at the peak.
    """

    code: int
    out: str
    lines: list[tuple[float, str]]
    seconds: float
    peak: int


def watch(arguments: list[str], cwd: Path) -> Watched:
    """Run `hnf` and note when it says what."""
    began = time.monotonic()
    out = cwd / "stdout.txt"
    with out.open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "hnf_offline", *arguments],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        assert process.stderr is not None
        lines = [(time.monotonic() - began, line.rstrip("\n")) for line in process.stderr]
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    return Watched(code, out.read_text(), lines, time.monotonic() - began, usage.ru_maxrss * scale)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_gpt2_of_124_million_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    run = write_run(tmp_path / "gpt2")
    seen = watch(["profile", str(run), "--accuracy", "screen", "--out", str(tmp_path / "out")], tmp_path)
    assert seen.code == 0, seen.lines[-3:]
    table = pl.read_parquet(tmp_path / "out" / "profile.parquet")
    ends = table.filter(pl.col("quantity").is_in(["hessian.lambda_max", "hessian.lambda_min"]))
    assert len(ends) == 2 * (1 + LAYERS)
    assert ends["value"].is_finite().all()
    parts = [(at, found) for at, line in seen.lines if (found := _PART.search(line))]
    done = [int(found[1]) for _, found in parts]
    assert done == sorted(done) and {int(found[2]) for _, found in parts} == {LAYERS}
    foretold = [(at, 60 * int(found[3]) + int(found[4])) for at, found in parts if found[3]]
    assert foretold, seen.lines
    with capsys.disabled():
        print(
            f"\n{seen.seconds:.0f} s, {seen.peak / 2**30:.1f} GiB at the peak; told in time, left, was left:"
        )
        for at, left in foretold:
            print(f"  {at:6.0f} s {left:6d} s {seen.seconds - at:6.0f} s")
    # Weights, their gradient, the few vectors of a screen, and one row's activations.
    assert seen.peak <= 12 * 2**30


if __name__ == "__main__":
    write_run(Path(sys.argv[1]))
