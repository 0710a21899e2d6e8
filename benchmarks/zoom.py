"""What a zoomed step costs beside a plain training step: `python -m benchmarks.zoom RUN --from STEP`.

Both loops train the same steps of the same run from the same checkpoint in one process, block by block in turn;
the ratio is that of the medians over blocks. The plain loop holds its rows in memory and does what a training
loop has to do: forward, backward, gradient norm, update, and the loss fetched at the end of a block. The zoom
reads its rows from the file, sets the logged rate, and compares every loss with the log; weights are compared
at checkpoints, which lies outside of the blocks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.rerun.readings import likeliest
from hnf_offline.rerun.series import BLOCK
from hnf_offline.rerun.start import Start, open_start
from hnf_offline.rerun.witness import Witness
from hnf_offline.rerun.zoom import open_for_retraining
from hnf_offline.run import open_run
from hnf_offline.run.model.loss import evaluate


def plain_block(start: Start, steps: range) -> float:
    """Train some steps as a training script would.

    Returns:
        Seconds.
    """
    recipe = likeliest(start)
    training = start.training(recipe)
    module, optimizer = training.module, training.optimizer
    batches = {step: start.batches.of(step) for step in steps}
    rates = {step: start.rates.of(step) for step in steps}
    losses = []
    began = time.perf_counter()
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for micro in batches[step]:
            loss = evaluate(module, micro.tokens, micro.labels).loss * micro.weight
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizer.step()
        losses.append(total)
    torch.stack(losses).tolist()
    return time.perf_counter() - began


def zoomed_block(start: Start, steps: range) -> float:
    """Retrain the same steps as a zoom does.

    Returns:
        Seconds.
    """
    recipe = likeliest(start)
    training = start.training(recipe)
    witness = Witness(start, recipe, steps.start)  # weights are not compared within a block
    began = time.perf_counter()
    for _ in steps:
        witness.see(training.advance(), training)
    witness.settle()
    return time.perf_counter() - began


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("sample_runs/spiky"))
    parser.add_argument("--from", dest="start", type=int, default=156)
    parser.add_argument("--manifest", type=Path, default=None)
    parser.add_argument("--blocks", type=int, default=15)
    chosen = parser.parse_args()
    run = open_run(chosen.run, chosen.manifest)
    session = open_for_retraining(run, ProfileSettings(tier="stability"), None)
    start = open_start(run, session, chosen.start)
    steps = range(chosen.start + 1, chosen.start + 1 + BLOCK)
    plain_block(start, steps)
    zoomed_block(start, steps)
    pairs = [(plain_block(start, steps), zoomed_block(start, steps)) for _ in range(chosen.blocks)]
    plain = statistics.median(one for one, _ in pairs) / BLOCK
    zoomed = statistics.median(one for _, one in pairs) / BLOCK
    print(f"plain step {plain * 1e3:.2f} ms, zoomed step {zoomed * 1e3:.2f} ms: {zoomed / plain:.3f} times")
    start.batches.close()


if __name__ == "__main__":
    main()
