"""The options that verbs share, and what they mean to the library."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnf_offline.errors import InputError, UsageError

if TYPE_CHECKING:
    from hnf_offline.profile.settings import ProfileSettings


class TierName(StrEnum):
    """How much to measure, in order of cost; each tier contains those before it (weights: alone, and in full)."""

    weights = "weights"
    forward = "forward"
    gradient = "gradient"
    stability = "stability"
    curvature = "curvature"
    full = "full"


class PrecisionName(StrEnum):
    """Precision of the products."""

    float32 = "float32"
    float64 = "float64"


class AccuracyName(StrEnum):
    """How well an eigenvalue is to be known, in order of cost."""

    screen = "screen"
    standard = "standard"
    certified = "certified"


class RuleName(StrEnum):
    """Definitions of a loss spike: ours, and published ones."""

    robust = "robust"
    olmo = "olmo"
    olmo_core = "olmo-core"
    stable_adamw = "stable-adamw"
    mosaic = "mosaic"
    adagc = "adagc"


class FindName(StrEnum):
    """What `hnf whatif` can look for by bisection over replays."""

    largest_stable_lr = "largest-stable-lr"


class ZoomName(StrEnum):
    """Whether `hnf report` retrains the steps before each spike."""

    auto = "auto"
    off = "off"


class FailOnName(StrEnum):
    """What `hnf report` fails on."""

    spike = "spike"


RunPath = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder or address (s3://...) of a run: checkpoints, log, batches."),
]
LogPath = Annotated[Path, typer.Argument(metavar="LOG|RUN", help="A training log, or the folder of a run.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="Folder for the results [default: below reports/]."),
]
PictureFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="Write spikes.png and spikes.json into this folder."),
]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that holds other files (kept).")]
Tier = Annotated[TierName, typer.Option("--tier", envvar="HNF_TIER", help="How much to measure.")]
Steps = Annotated[
    str | None,
    typer.Option("--steps", metavar="A:B", help="Only checkpoints from step A to B; either may be left out."),
]
Every = Annotated[int, typer.Option("--every", metavar="N", min=1, help="Only every N-th checkpoint.")]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        envvar="HNF_LAYERS",
        metavar="GLOB",
        help="Layers to give a curvature of their own: '*.layers.[0-3].*'.",
    ),
]
Traces = Annotated[
    int,
    typer.Option(
        "--traces",
        metavar="N",
        min=0,
        help="Also the trace of every layer's curvature, N products each: 12 tell most to 15 %, 24 to 5 %; "
        "0 for none.",
    ),
]
Density = Annotated[
    bool,
    typer.Option(
        "--density", help="Also the spectral density of the whole model: some hundred products a checkpoint."
    ),
]
GradientCheck = Annotated[
    bool,
    typer.Option(
        "--gradient-check",
        help="Also hold the gradient against differences of the loss in float64: does backward fit forward?",
    ),
]
Koopman = Annotated[
    bool,
    typer.Option(
        "--koopman",
        help="Also the dynamic modes of every block (residual Koopman spectra), which --tier full has by itself.",
    ),
]
BetweenRuns = Annotated[
    bool,
    typer.Option(
        "--barrier",
        help="Also replay the loss on the straight line from A's weights to B's, at up to 5 common checkpoints.",
    ),
]
Landscape = Annotated[
    bool,
    typer.Option(
        "--landscape",
        help="Also how the loss lies around and between checkpoints: sharpness, noise it bears, barriers, directions "
        "of the gradients; --tier full has it by itself.",
    ),
]
Accuracy = Annotated[
    AccuracyName,
    typer.Option(
        "--accuracy",
        envvar="HNF_ACCURACY",
        help="How well eigenvalues are to be known: screen (about 10 %), standard (about 1 %), or certified (by exact "
        "products, with a fresh start beside every one).",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="HNF_DEVICE",
        metavar="auto|cpu|mps|cuda|cuda:N",
        help="Where to compute; auto takes a GPU where there is one, cuda all of them. A process works on each of "
        "several: cuda:0,cuda:1.",
    ),
]
Precision = Annotated[
    PrecisionName, typer.Option("--dtype", envvar="HNF_DTYPE", help="Precision of the products.")
]
Rows = Annotated[
    int | None,
    typer.Option(
        "--rows",
        envvar="HNF_ROWS",
        metavar="N",
        min=1,
        help="Sequences or images to replay [default: two training batches, or about 4096 tokens, or 32 images].",
    ),
]
Replay = Annotated[
    Path | None,
    typer.Option(
        "--replay",
        envvar="HNF_REPLAY",
        metavar="FILE",
        help="Replay exactly these rows (.safetensors, .npz).",
    ),
]
Manifest = Annotated[
    Path | None,
    typer.Option("--manifest", metavar="FILE", help="Use this run.toml instead of the run's own."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PKG.MOD:FN", help="Function that builds the model; it is imported and called."
    ),
]
Twins = Annotated[
    int,
    typer.Option(
        "--twins",
        metavar="K",
        min=0,
        help="Retrain K times more from slightly changed weights: what is chance?",
    ),
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        "-p",
        metavar="P",
        help="Retrain under this policy; give it again for more arms. 'lr-cap=0.01+skip=220' joins two; 'advice' "
        "is what the report recommends.",
    ),
]
Find = Annotated[
    FindName | None, typer.Option("--find", help="Find the largest rate that does not spike, by bisection.")
]
Zoom = Annotated[
    ZoomName, typer.Option("--zoom", help="Retrain the steps before each spike where that is affordable.")
]
Prove = Annotated[
    bool, typer.Option("--prove", help="Test each recommendation by retraining the run with it.")
]
FailOn = Annotated[FailOnName | None, typer.Option("--fail-on", help="Exit with 1 where one was found.")]
Rule = Annotated[RuleName, typer.Option("--rule", envvar="HNF_RULE", help="Definition of a loss spike.")]
Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=COLUMN",
        help="Which column of the log is the step, loss, grad_norm or learning_rate: loss=train/lm_loss.",
    ),
]
Target = Annotated[
    float | None,
    typer.Option(
        "--target", metavar="LOSS", help="First step at which the loss (median of 20 rows) is this low."
    ),
]
Scalers = Annotated[
    list[str] | None,
    typer.Option(
        "--scaler",
        metavar="INIT,GROWTH,INTERVAL",
        help="Count the updates that this loss scaler would have skipped: 1024,1.5,200; give it again for more.",
    ),
]
NoMemoryMap = Annotated[
    bool, typer.Option("--no-mmap", help="Read weight files instead of mapping them (network disks).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only where the result is.")]
Silent = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
ShowPlan = Annotated[
    bool, typer.Option("--plan", help="Print what it would cost; compute and write nothing.")
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on: print what is new as log and checkpoints grow.")
]
Interval = Annotated[
    float,
    typer.Option("--interval", metavar="SECONDS", min=0.1, help="With --follow: seconds between two looks."),
]
UntilIdle = Annotated[
    float | None,
    typer.Option(
        "--until-idle",
        metavar="SECONDS",
        min=0,
        help="With --follow: stop once nothing has changed for so long [default: go on until Ctrl-C].",
    ),
]
Explain = Annotated[
    int | None,
    typer.Option(
        "--explain",
        metavar="ID",
        min=1,
        help="Tell this spike from beginning to end (spikes are numbered in order of onset).",
    ),
]
Map = Annotated[bool, typer.Option("--map", help="Also draw the layer by step map on the terminal.")]


def profile_settings(
    tier: TierName,
    steps: str | None,
    every: int,
    layers: str | None,
    device: str,
    dtype: PrecisionName,
    rows: int | None,
    replay: Path | None,
    *,
    accuracy: AccuracyName = AccuracyName.standard,
    traces: int = 0,
    density: bool = False,
    gradient_check: bool = False,
    koopman: bool = False,
    landscape: bool = False,
    from_run: Mapping[str, Any] | None = None,
) -> ProfileSettings:
    """Turn options into the settings of a profile.

    What run.toml decides (`origin.asked_by_run`) is given as `from_run` and takes the place of the defaults.

    Returns:
        The settings.

    Raises:
        InputError: if the replay file does not exist.
        UsageError: if the device is none, or the tier does not measure what is asked for besides.
    """
    from hnf_offline.profile.devices import device_names
    from hnf_offline.profile.settings import TIERS, ProfileSettings

    said = from_run or {}
    tier, accuracy = TierName(said.get("tier", tier)), AccuracyName(said.get("accuracy", accuracy))
    dtype, device = PrecisionName(said.get("dtype", dtype)), said.get("device", device)
    rows, replay = said.get("rows", rows), said.get("replay", replay)
    steps, every, layers = said.get("steps", steps), said.get("every", every), said.get("layers", layers)
    device_names(device)
    if gradient_check and TIERS.index(tier) < TIERS.index("gradient"):
        raise UsageError(
            f"--gradient-check is not measured by --tier {tier.value}", remedy="use --tier gradient"
        )
    if koopman and TIERS.index(tier) < TIERS.index("forward"):
        raise UsageError(f"--koopman is not measured by --tier {tier.value}", remedy="use --tier forward")
    if landscape and TIERS.index(tier) < TIERS.index("forward"):
        raise UsageError(f"--landscape is not measured by --tier {tier.value}", remedy="use --tier forward")
    if traces and TIERS.index(tier) < TIERS.index("curvature"):
        raise UsageError(f"--traces is not measured by --tier {tier.value}", remedy="use --tier curvature")
    first, last = step_range(steps)
    if replay is not None and not replay.is_file():
        raise InputError(
            "no such file", path=replay, remedy="--replay takes a .safetensors or .npz of tokens or images"
        )
    return ProfileSettings(
        tier=tier.value,
        first_step=first,
        last_step=last,
        every=every,
        layers=layers,
        device=device,
        dtype=dtype.value,
        rows=rows,
        replay=replay,
        accuracy=accuracy.value,
        traces=traces,
        density=density,
        gradient_check=gradient_check,
        koopman=koopman,
        landscape=landscape,
    )


def one_device(device: str) -> str:
    """Refuse several devices where the work cannot be split between them.

    Returns:
        The device, as it was spelled.

    Raises:
        UsageError: if there are several, or it is none.
    """
    from hnf_offline.profile.devices import device_names

    if len(device_names(device)) > 1:
        raise UsageError(f"--device {device}: this runs on one device", remedy="name one of them")
    return device


def step_range(steps: str | None) -> tuple[int | None, int | None]:
    """Read "100:200", "100:" or ":200".

    Returns:
        First and last step, None where left out.

    Raises:
        UsageError: if it is not a range, or ends before it begins.
    """
    if steps is None:
        return None, None
    parts = steps.split(":")
    if len(parts) != 2 or not all(part == "" or (part.isascii() and part.isdecimal()) for part in parts):
        raise UsageError(f"--steps {steps} is not a range", remedy="write it as 100:200, 100: or :200")
    first, last = (int(part) if part else None for part in parts)
    if first is not None and last is not None and first > last:
        raise UsageError(f"--steps {steps} ends before it begins", remedy=f"write it as {last}:{first}")
    return first, last
