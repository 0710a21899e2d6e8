"""What a profile is asked to measure, and how its progress is told. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

#: Tiers in order of cost; each contains the ones before it, but for `weights`, which stands alone and is in `full`.
#: (Without a model only the weights are looked at.)
TIERS = ("weights", "forward", "gradient", "stability", "curvature", "full")


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """What to measure.

    Attributes:
        tier: one of `TIERS`.
        first_step: first checkpoint step, None for all.
        last_step: last checkpoint step, None for all.
        every: profile every n-th checkpoint.
        layers: glob over layer paths for the per-layer curvature, None for all.
        device: "auto", "cuda", "mps" or "cpu".
        dtype: "float32" or "float64"; differences and products need at least float32.
        rows: sequences to replay; None for two training batches, or about 4096 tokens (32 images) where their size is
            unknown.
        replay: a batch file to replay instead of the run's own.
        accuracy: "screen", "standard" or "certified": when an eigenvalue is known well enough (`ACCURACIES`).
        seed: seed of every random start vector.
        traces: products for the trace of each layer, at least 4; 0 for no traces.
        density: also the spectral density of the whole model, some hundred products a checkpoint.
        gradient_check: also hold the gradient against differences of the loss in float64.
        koopman: also the dynamic modes of every block, which tier full has by itself.
        landscape: also the landscape around and between checkpoints, which tier full has by itself.
    """

    tier: str = "curvature"
    first_step: int | None = None
    last_step: int | None = None
    every: int = 1
    layers: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    rows: int | None = None
    replay: Path | None = None
    accuracy: str = "standard"
    seed: int = 0
    traces: int = 0
    density: bool = False
    gradient_check: bool = False
    koopman: bool = False
    landscape: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of progress: `done` of `total` checkpoints, `cached` of them from an earlier run.

    Attributes:
        step: the checkpoint just finished, or the one being measured where `part` says how far it is.
        done: checkpoints finished so far, those from the cache included.
        total: checkpoints asked for.
        cached: checkpoints taken from the cache.
        seconds: what this checkpoint cost (has cost so far, with a `part`), 0.0 from the cache.
        event: a sentence worth telling now ("step 140: S crosses 1 in layers.0"), "" for none.
        work: what is going on where that is not what was asked for, such as a "zoom" within a report; "" otherwise.
        part: how far a checkpoint is that is not finished ("layers 31 of 148"), "" where one just was.
        share: share of the work of unfinished checkpoints that is behind; above 1 where several are measured at once.
    """

    step: int
    done: int
    total: int
    cached: int
    seconds: float
    event: str = ""
    work: str = ""
    part: str = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a profile would cost, without computing it.

    Attributes:
        checkpoints: how many would be profiled.
        cached: how many are there already.
        tier: the tier.
        layers: layers with their own curvature.
        parameters: parameters of the model.
        rows: sequences or images that would be replayed.
        tokens: tokens that would be replayed; of images the patches that they are cut into.
        forwards: forward passes a checkpoint, estimated.
        peak_bytes: memory at the peak, estimated.
        device: where.
        missing: what is missing and what that costs.
        seconds: seconds a checkpoint, from one timed forward pass.
        seconds_low: the least that it may take, on a machine as busy as it is now.
        seconds_high: the most.
        array: name of the array of images that would be replayed, "" for tokens.
    """

    checkpoints: int
    cached: int
    tier: str
    layers: int
    parameters: int
    rows: int
    tokens: int
    forwards: float
    peak_bytes: int
    device: str
    missing: tuple[str, ...] = field(default=())
    seconds: float = 0.0
    seconds_low: float = 0.0
    seconds_high: float = 0.0
    array: str = ""
