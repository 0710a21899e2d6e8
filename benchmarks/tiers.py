"""What the cheap tiers cost beside plain work: `python -m benchmarks.tiers [RUN] [--step STEP] [--repeats 15]`.

Three ratios of one checkpoint, in one process: the tier `forward` and one plain forward pass of the same rows, what the
tier `gradient` adds and one plain gradient of the same rows, the tier `weights` and `torch.linalg.svdvals` of the same
matrices, one call each (of as many checkpoints as a profile measures side by side: 16 of a small model). "Plain" is
what a training script does: all rows at once, under the attention kernel that torch chooses, the module's own loss.
Both sides take turns, and a ratio is the median over the pairs; reading files and building the model are outside. On a
CPU it is processor time, so that other programs on the machine count little.

Below each ratio stands where the time goes, family by family, from a run under cProfile, which makes small calls look
dearer than they are. `--decoder` measures a GPT-2 of d = 768 and 6 blocks instead of a run, made and trained for three
steps in a temporary folder: there hardly any time is Python's.
"""

from __future__ import annotations

import argparse
import cProfile
import inspect
import pstats
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hnf_offline
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.checkpoint import training_loss_rows
from hnf_offline.profile.comparisons import Occasion, occasion
from hnf_offline.profile.derivatives import derivative_rows
from hnf_offline.profile.forward import forward_rows
from hnf_offline.profile.measure import measure, subject_of
from hnf_offline.profile.reading import load
from hnf_offline.profile.session import Session, full_precision, open_session, optimizer_of
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.snapshot import alike, matrices_in
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.weight_rows import occasion_rows
from hnf_offline.profile.weights import checkpoints_together, snapshot_of
from hnf_offline.quantities import catalogue
from hnf_offline.record import Recorder
from hnf_offline.run import open_run
from hnf_offline.run.model.build import build_model, load_weights_into
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.records import Checkpoint, ModelSource, Run
from hnf_offline.table import Row

CHEAP = ("forward", "gradient", "weights")
#: Half of GPT-2 small, with a small vocabulary: the output of a large one is what a forward pass would mostly compute.
DECODER: dict[str, Any] = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 4096, "n_embd": 768, "n_layer": 6,
    "n_head": 12, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
DECODER_ROWS, DECODER_STEPS = 4, 3
#: Rooms of the package that are told beside the families of quantities.
WATCHING, ATTENDING = "watching the modules", "attention, computed and read"
ROOMS = {"observe.py": WATCHING, "watched_attention.py": ATTENDING}
#: Shares below this are summed up.
SMALL = 0.01


@dataclass(frozen=True, slots=True)
class Pair:
    """Two things that are timed in turn.

    Attributes:
        name: of the line.
        plain: what is the unit.
        tier: what is measured in that unit.
    """

    name: str
    plain: Callable[[], object]
    tier: Callable[[], object]


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Time one call.

    Returns:
        Seconds: of the processor on a CPU, on the clock elsewhere.
    """
    if device.type == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.accelerator.synchronize()
    began = time.perf_counter()
    work()
    torch.accelerator.synchronize()
    return time.perf_counter() - began


def timed(pair: Pair, repeats: int, device: torch.device) -> tuple[float, float, float]:
    """Time both sides in turn.

    Returns:
        Seconds of the plain side and of the tier, and the ratio: medians.
    """
    pair.plain(), pair.tier()
    both = [(seconds_of(pair.plain, device), seconds_of(pair.tier, device)) for _ in range(repeats)]
    plain, tier = (statistics.median(column) for column in zip(*both, strict=True))
    return plain, tier, statistics.median(tier / plain for plain, tier in both)


def families(work: Callable[[], object]) -> dict[str, float]:
    """Profile a piece of work.

    Returns:
        Share of the time by family of quantities; what else is in the package by file; the rest is the module's.
    """
    package = Path(hnf_offline.__file__).parent
    profiler = cProfile.Profile()
    profiler.enable()
    work()
    profiler.disable()
    entries: Mapping[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]

    def place(file: str) -> str:
        path = Path(file)
        if path.parent == package / "quantities" and path.name != "registry.py":
            return f"quantities: {path.stem}"
        return ROOMS.get(path.name, "") if path.is_relative_to(package) else ""

    total = sum(own for _, _, own, _, _ in entries.values())
    spent: Counter[str] = Counter()
    for (file, _, _), (_, _, own, all_of_it, callers) in entries.items():
        name = place(file)
        if name and name != WATCHING:
            # What a family calls is its own. Hooks call families: of them only their own time counts.
            # A built-in function that calls back (a list that takes a generator) was called by the family itself.
            outside = sum(
                times[3] for caller, times in callers.items() if caller[0] != "~" and place(caller[0]) != name
            )
            spent[name] += outside if callers else all_of_it
        elif name:
            spent[name] += own
    shares = {name: seconds / total for name, seconds in spent.most_common()}
    return shares | {"everything else": 1 - sum(shares.values())}


def pairs_of(run: Run, session: Session, checkpoint: Checkpoint, occasions: Sequence[Occasion]) -> list[Pair]:
    """Prepare a checkpoint.

    Args:
        run: the run.
        session: of the tier `gradient`.
        checkpoint: what is measured.
        occasions: the checkpoints that the tier `weights` measures side by side.

    Returns:
        What is timed.
    """
    loaded = load(checkpoint, session.device)
    if isinstance(loaded, Exception):
        raise loaded
    load_weights_into(session.module, loaded.weights)
    state, _ = optimizer_of(session, run, checkpoint, loaded.optimizer)
    subject = subject_of(session, checkpoint.step, state, session.memory)
    (rows,) = session.batch.cut(len(session.batch.tokens), session.device)
    parameters = [value for value in session.module.parameters() if value.requires_grad]

    def forward() -> None:
        with torch.no_grad():
            plain_loss(session.module, rows)

    def gradient() -> None:
        torch.autograd.grad(plain_loss(session.module, rows), parameters, allow_unused=True)

    def with_log() -> list[Row]:
        return measure(subject, settings) + training_loss_rows(run, session, checkpoint.step)

    settings = ProfileSettings(tier="forward")
    matrices = [
        matrix
        for one in occasions
        for group in alike(one.now.layers)
        for layer, own in zip(group.layers, group.of(one.now.weights), strict=True)
        for matrix in matrices_in(layer, own)
    ]
    return [
        Pair("forward", forward, lambda: forward_rows(subject)),
        Pair("forward, with the loss of the logged batch", forward, with_log),
        Pair("gradient", gradient, lambda: gradient_tier(subject)),
        Pair(
            "weights",
            lambda: [torch.linalg.svdvals(matrix) for matrix in matrices],
            lambda: occasion_rows(occasions, session.device),
        ),
    ]


def plain_loss(module: nn.Module, rows: MicroBatch) -> Tensor:
    """Run a module as a training script does; one that takes no such labels as a profile does, whose loss that is.

    Returns:
        The loss.
    """
    labels = rows.tokens if rows.labels is None else rows.labels
    longer = labels.ndim > 1 and labels.shape != rows.tokens.shape  # the targets of every position
    if longer or "labels" not in inspect.signature(module.forward).parameters:
        return evaluate(module, rows.tokens, rows.labels).loss
    output = module(rows.tokens, labels=labels)
    return output.loss if hasattr(output, "loss") else output["loss"]


def gradient_tier(subject: Subject) -> list[Row]:
    """Measure what the tier `gradient` adds to the one before it.

    Returns:
        Its rows.
    """
    return derivative_rows(subject, ProfileSettings(tier="gradient"), stability=False, curvature=False)


def decoder(folder: Path) -> Path:
    """Train a decoder for a few steps, with a checkpoint of each.

    Returns:
        The run's folder.
    """
    torch.manual_seed(0)
    module = build_model(ModelSource("hf", DECODER), device=torch.device("cpu"), dtype=torch.float32)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    shape = DECODER_STEPS, DECODER_ROWS, DECODER["n_positions"]
    tokens = torch.randint(0, DECODER["vocab_size"], shape)
    with Recorder(folder, every=1, model=DECODER) as recorder:
        recorder.save_batches(tokens.flatten(0, 1))
        for step in range(1, DECODER_STEPS + 1):
            optimizer.zero_grad()
            loss = evaluate(module, tokens[step - 1], None).loss
            loss.backward()
            optimizer.step()
            recorder.record(step, module, optimizer, loss=loss.detach())
    return folder


def tell(run: Run, session: Session, checkpoint: Checkpoint, repeats: int, tiers: Sequence[str]) -> None:
    """Print ratios and where the time goes."""
    places = {point.step: at for at, point in enumerate(run.checkpoints)}
    at = places[checkpoint.step]
    snapshots = {
        one: snapshot_of(run, session, run.checkpoints[one]) for one in {0, *range(max(0, at - 2), at + 1)}
    }
    for one in range(at + 1, min(len(run.checkpoints), at + checkpoints_together(snapshots.values()))):
        snapshots[one] = snapshot_of(run, session, run.checkpoints[one])
    occasions = [
        occasion(
            snapshots[one],
            [snapshots[one - back] for back in (1, 2) if one >= back],
            snapshots[0] if one else None,
        )
        for one in snapshots
        if one >= at
    ]
    parameters = sum(layer.size for layer in session.layers)
    rows, length = session.batch.tokens.shape[:2]
    print(
        f"step {checkpoint.step}: {parameters:,} parameters, {rows} rows of {length}, {session.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {repeats} pairs; "
        f"weights of {len(occasions)} checkpoints side by side"
    )
    for pair in pairs_of(run, session, checkpoint, occasions):
        if pair.name.partition(",")[0] not in tiers:
            continue
        plain, tier, ratio = timed(pair, repeats, session.device)
        print(f"\n{pair.name}: {tier * 1e3:.1f} ms / {plain * 1e3:.1f} ms = {ratio:.2f}", flush=True)
        shares = families(pair.tier)
        for name, share in shares.items():
            if share >= SMALL:
                print(f"    {share * 100:4.0f} %  {name}")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=Path("sample_runs/spiky"))
    parser.add_argument("--step", type=int, help="checkpoint, the one in the middle if not given")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--decoder", action="store_true", help="a GPT-2 of d = 768 instead of a run")
    parser.add_argument("--tier", nargs="*", choices=CHEAP, default=CHEAP)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    assert catalogue()
    with tempfile.TemporaryDirectory() as folder, full_precision():
        run = open_run(decoder(Path(folder) / "decoder") if asked.decoder else asked.run)
        session = open_session(run, ProfileSettings(tier="gradient", device=asked.device))
        if session is None:
            parser.error(f"{asked.run}: no model or no batches to replay")
        steps = {point.step: point for point in run.checkpoints}
        middle = run.checkpoints[len(run.checkpoints) // 2].step
        if asked.step is not None and asked.step not in steps:
            parser.error(f"--step {asked.step}: the run has {', '.join(map(str, steps))}")
        tell(run, session, steps[middle if asked.step is None else asked.step], asked.repeats, asked.tier)


if __name__ == "__main__":
    main()
