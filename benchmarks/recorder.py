"""What the black box costs a step: `python benchmarks/recorder.py [--steps 200] [--width 256] [--stability]`.

One process, one model: recorded and unrecorded steps take turns, and the ratio is that of
the two medians. Every setting has its own box; no trigger fires, so no writing is in them. The steps that take a full
state are too few for a median to show: what one takes is given beside it, and the ratio with it spread over all
steps. The last column is one freeze by hand.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

from hnf_offline.record import FlightRecorder
from hnf_offline.record.ring import FullState
from hnf_offline.record.stability import StabilityEstimate
from hnf_offline.run.model.gpt import GPT, GPTConfig

SETTINGS = ((32, 8), (128, 16), (128, 64), (512, 256))
WARM_UP = 10


def main() -> None:
    """Measure every setting and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="recorded steps of each setting")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stability", type=int, metavar="N", help="estimate S every N steps too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=512,
        block_size=arguments.length,
        n_layer=arguments.layers,
        n_head=4,
        n_embd=arguments.width,
    )
    module = GPT(config).initialise(torch.Generator().manual_seed(0)).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    weights = sum(value.numel() for value in module.parameters())
    print(
        f"{weights / 1e6:.1f} M weights, {arguments.rows} x {arguments.length} tokens a step, {device.type}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(
        "keep  state_every  unrecorded    recorded    ratio  full state   with states    memory  one freeze"
    )
    for keep, state_every in SETTINGS:
        measure(module, optimizer, keep, state_every, arguments, device)


def measure(
    module: GPT,
    optimizer: torch.optim.Optimizer,
    keep: int,
    state_every: int,
    arguments: argparse.Namespace,
    device: torch.device,
) -> None:
    """Take recorded and unrecorded steps in turn, and print the medians."""
    shape = (arguments.rows, arguments.length)

    def update(tokens: torch.Tensor) -> torch.Tensor:
        loss = functional.cross_entropy(module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return loss

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    estimate = None if arguments.stability is None else StabilityEstimate(every=arguments.stability)
    plain: list[float] = []
    recorded: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        box = FlightRecorder(
            Path(folder) / "box",
            module,
            optimizer,
            keep=keep,
            state_every=state_every,
            after=4,
            triggers=(),
            stability=estimate,
        )
        for step in range(2 * (arguments.steps + WARM_UP)):
            tokens = torch.randint(0, 512, shape, device=device)
            with_box = step % 2 == 0
            start = wait()
            if with_box:
                with box.step(tokens) as taken:
                    taken.done(update(tokens))
            else:
                update(tokens)
            if step >= 2 * WARM_UP:
                (recorded if with_box else plain).append(wait() - start)
        memory = box.memory().total
        copies = []
        for _ in range(5):
            start = wait()
            FullState.take(0, module, optimizer)
            copies.append(wait() - start)
        start = wait()
        box.freeze("benchmark")
        freeze = wait() - start
        box.close()
    before, after = statistics.median(plain), statistics.median(recorded)
    copy = statistics.median(copies)
    print(
        f"{keep:>4}  {state_every:>11}  {1e3 * before:7.2f} ms  {1e3 * after:7.2f} ms  {after / before:7.3f}  "
        f"{1e3 * copy:7.2f} ms  {(after + copy / state_every) / before:12.3f}  {memory / 1e6:5.1f} MB  {freeze:8.2f} s"
    )


if __name__ == "__main__":
    main()
