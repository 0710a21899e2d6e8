"""What a run directory holds, as frozen records. Nothing here reads tensors or imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from hnf_offline.run.random_states import RandomStates


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights after `step` optimizer updates, as files.

    Attributes:
        step: optimizer updates applied to these weights.
        path: the folder or file a user would name.
        layout: name of the format that reads it (a key of `run.formats.FORMATS`).
        weight_files: the files that hold the weights.
        optimizer_files: the files that hold the optimizer state, empty where none was saved.
        config_file: the model configuration saved with it, if any.
        adapter: whether the weights are only an adapter (LoRA and the like); the model below it is another file.
        memory_map: whether its files may be mapped into memory; False on network disks that read them badly.
    """

    step: int
    path: Path
    layout: str
    weight_files: tuple[Path, ...]
    optimizer_files: tuple[Path, ...] = ()
    config_file: Path | None = None
    adapter: bool = False
    memory_map: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """All files whose content decides what is measured at this checkpoint."""
        return self.weight_files + self.optimizer_files


@dataclass(frozen=True, slots=True)
class LogSegment:
    """One uninterrupted stretch of a log: a file, or a part of one between two restarts.

    Attributes:
        file: the file it was read from.
        first: its first step.
        last: its last step.
        rows: its rows with a loss.
        replaced: how many of them a later segment wrote again (the last writer wins).
    """

    file: Path
    first: int
    last: int
    rows: int
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class Log:
    """The training log: one row a step, sorted by step, each step once.

    The loss of step s is computed before update s, so on the weights of checkpoint s - 1.

    Attributes:
        rows: columns `step` (i64), and `loss`, `grad_norm`, `learning_rate` (f64, null where the log has
            none, NaN and infinity kept), those of `loss_scale`, `skipped_steps`, `throughput` and `step_time` that
            the log has (units are the log's own), then any other numeric column under its own name.
        files: the files it was read from.
        duplicates: rows whose step came again later (the last writer wins).
        skipped_lines: lines that could not be read.
        restarts: steps at which the log jumps back or starts again: resumes of the run.
        columns: our column name -> the name in the file.
        formats: names of the formats that read the files, each once.
        segments: the stretches it was put together from, in the order in which they were written.
        notes: what a reader said of the log beside its rows, one sentence each.
        disagreeing: how many of the duplicates have another loss than the row that counts.
        shift: added to the file's steps so that `step` counts optimizer updates; 1 for a log that counts from 0.
    """

    rows: pl.DataFrame
    files: tuple[Path, ...]
    duplicates: int = 0
    skipped_lines: int = 0
    restarts: tuple[int, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    segments: tuple[LogSegment, ...] = ()
    notes: tuple[str, ...] = ()
    disagreeing: int = 0
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Batches:
    """Saved batches of tokens, or of images and other rows of floating-point numbers; read only when asked for.

    Attributes:
        path: the file.
        tokens: name of the token array in it, or of that of the images.
        labels: name of the label array, None where the labels are the tokens.
        rows: number of sequences.
        length: tokens a sequence; 0 for images.
        rows_per_step: sequences of one optimizer step when the file holds the training batches in order.
        first_step: the step whose batch is rows 0..rows_per_step-1.
        steps: the step of each row where the file says so; wins over `rows_per_step`.
        starts: file of the place in a flat token file where each row begins; a row's labels then end one token
            after its tokens.
        aligned: whether labels[t] in the file is the target of position t itself (as nanoGPT's y), not of t - 1.
        every_step: whether all rows are the batch of every step (full-batch training).
        shape: of one image [channels, height, width], or other row of floating-point numbers; empty for tokens.
    """

    path: Path
    tokens: str
    labels: str | None
    rows: int
    length: int
    rows_per_step: int | None = None
    first_step: int = 1
    steps: tuple[int, ...] | None = None
    starts: Path | None = None
    aligned: bool = False
    every_step: bool = False
    shape: tuple[int, ...] = ()

    def rows_of_step(self, step: int) -> range | tuple[int, ...]:
        """Which rows were the batch of an optimizer step.

        Returns:
            Row numbers, empty where the file does not say or does not hold them.
        """
        if self.every_step:
            return range(self.rows)
        if self.steps is not None:
            return tuple(row for row, of in enumerate(self.steps) if of == step)
        if self.rows_per_step is None:
            return ()
        start = (step - self.first_step) * self.rows_per_step
        stop = start + self.rows_per_step
        return range(start, stop) if start >= 0 and stop <= self.rows else ()


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """What an adapter's checkpoints are put on.

    Attributes:
        settings: adapter_config.json as read.
        base_files: the weights of the model it was trained on, which were frozen.
        checkpoint: one of the adapter's checkpoints; its tensors say which layers have an adapter, and of what rank.
    """

    settings: Mapping[str, Any]
    base_files: tuple[Path, ...]
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class ModelSource:
    """How to build the module the checkpoints belong to.

    Attributes:
        kind: "gpt" (built in), "hf" (transformers), "adapter" (of PEFT, on one of transformers) or "factory" (the
            user's function).
        config: the configuration as read.
        config_file: where it was read.
        factory: `package.module:function` for kind "factory".
        untrusted: whether only a file that came with the run names the factory; it is then never imported.
        adapter: for kind "adapter", what it is put on; `config` is then the frozen model's.
    """

    kind: str
    config: Mapping[str, Any]
    config_file: Path | None = None
    factory: str | None = None
    untrusted: bool = False
    adapter: AdapterSource | None = None


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """What `run.toml` says about the optimizer; None where it says nothing and the saved state decides.

    Attributes:
        kind: "adam", "adamw", "sgd" or "other".
        learning_rate: of the next update.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        momentum: decay of SGD's momentum buffer.
        nesterov: whether SGD looks ahead.
        weight_decay: decay coefficient; used by retraining.
        max_grad_norm: bound on the global gradient norm before an update; used by retraining.
        accumulation: batches whose gradients made one update; used by retraining.
        precision: "float32", "bfloat16" or "float16" of forward and backward passes; used by retraining.
    """

    kind: str | None = None
    learning_rate: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    accumulation: int | None = None
    precision: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What a run.toml says.

    Attributes:
        file: the file.
        keys: every key in it: "model.factory", "analysis.tier".
        analysis: what its section [analysis] asks for, where neither an option nor the environment does: "tier",
            "accuracy", "device", "dtype", "rows", "replay" (a path), "steps", "every", "layers" and "rule", as the
            options of these names spell it.
    """

    file: Path
    keys: tuple[str, ...] = ()
    analysis: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file that was passed over, and why.

    Attributes:
        path: the file or folder.
        reason: what is wrong with it.
        remedy: what to do about it, "" where nothing is known.
        checkpoint: whether it would have been one checkpoint more.
    """

    path: Path
    reason: str
    remedy: str = ""
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """Something the run lacks, and what that costs the analysis."""

    what: str
    cost: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory as found on disk.

    Attributes:
        path: the directory.
        name: its last component.
        checkpoints: sorted by step.
        log: the training log, None where none was found.
        batches: replay batches, None where none were found.
        model: how to build the module, None where unknown.
        optimizer: what run.toml says of the optimizer.
        resume_steps: steps at which training was resumed (run.toml, or restarts in the log).
        configuration: every hyper-parameter found, flattened ("optimizer.learning_rate" -> 0.01).
        skipped: files and lines passed over.
        missing: what is not there and what that costs.
        random_states: recorded generator states, None where there are none.
        said: what a run.toml says, None where there is none.
    """

    path: Path
    name: str
    checkpoints: tuple[Checkpoint, ...]
    log: Log | None
    batches: Batches | None
    model: ModelSource | None
    optimizer: OptimizerSettings = OptimizerSettings()
    resume_steps: tuple[int, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    missing: tuple[Missing, ...] = ()
    random_states: RandomStates | None = None
    said: Said | None = None

    @property
    def gap(self) -> int | None:
        """Median number of steps between checkpoints: the resolution of every lead; None below two."""
        steps = [checkpoint.step for checkpoint in self.checkpoints]
        gaps = sorted(after - before for before, after in pairwise(steps))
        return gaps[len(gaps) // 2] if gaps else None
