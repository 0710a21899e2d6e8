"""What the checks look at: the run, and what was kept of each checkpoint when its tensors were read. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnf_offline.run.records import Checkpoint, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorPortrait:
    """What is kept of one tensor.

    Attributes:
        shape: its shape.
        dtype: its type as torch spells it, such as "float32".
        size: its number of elements.
        floating: whether it holds floating-point numbers: integers are tables and masks, never trained.
        digest: hash of all its bytes.
        norm: root of the sum of squares of the finite elements.
        nonfinite: number of NaN and infinite elements.
        sample: its elements at places drawn once a shape, all of them where they are few; f32.
    """

    shape: tuple[int, ...]
    dtype: str
    size: int
    floating: bool
    digest: str
    norm: float
    nonfinite: int
    sample: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Moment:
    """What is kept of the optimizer's moments of one parameter.

    Attributes:
        shape: their shape.
        dtype: their type.
        digest: hash of the second moment, or of the momentum where there is no second.
        zero: whether they hold only zeros: no update was made yet.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str
    zero: bool


@dataclass(frozen=True, slots=True)
class OptimizerPortrait:
    """What is kept of an optimizer's state.

    Attributes:
        step: updates it counts, None where it does not count.
        learning_rates: the rate of each of its groups.
        moments: parameter name or number -> its moments.
        names: whether the moments are keyed by parameter name.
    """

    step: int | None
    learning_rates: tuple[float, ...]
    moments: Mapping[str, Moment]
    names: bool


@dataclass(frozen=True, slots=True)
class Portrait:
    """What is kept of one checkpoint after its tensors were read.

    Attributes:
        checkpoint: the checkpoint.
        tensors: name -> tensor, without the prefixes of wrappers.
        optimizer: its optimizer state, None where there is none that can be read.
        optimizer_error: why its optimizer state could not be read, "" where it could or there is none.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorPortrait]
    optimizer: OptimizerPortrait | None = None
    optimizer_error: str = ""

    @property
    def step(self) -> int:
        """Step of the checkpoint."""
        return self.checkpoint.step


@dataclass(frozen=True, slots=True)
class Replays:
    """What replaying a few checkpoints gave.

    Attributes:
        losses: (checkpoint, step of the batch) -> replayed loss.
        skipped_because: why there are none, "" where there are some.
        errors: checkpoint -> why it could not be replayed.
    """

    losses: Mapping[tuple[int, int], float] = field(default_factory=dict)
    skipped_because: str = ""
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """A run, and what is known of its checkpoints.

    Attributes:
        run: the run; its checkpoints are those that are looked at.
        portraits: one a checkpoint that could be read, in order of steps; None where no tensor was read.
        unreadable: step -> (path, reason, remedy) of checkpoints whose tensors could not be read.
        settings: step -> the model's settings saved with that checkpoint.
        replays: None where nothing was to be replayed.
        model: `package.module:function` that builds the model, None where the run says.
        device: where to replay.
        forward: whether the model is run at all.
    """

    run: Run
    portraits: tuple[Portrait, ...] | None = None
    unreadable: Mapping[int, tuple[Path, str, str]] = field(default_factory=dict)
    settings: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    replays: Replays | None = None
    model: str | None = None
    device: str = "auto"
    forward: bool = True

    def relative(self, path: Path | None) -> str:
        """Spell a path relative to the run.

        Returns:
            "checkpoint-100/model.safetensors"; "" for the run itself.
        """
        if path is None:
            return ""
        try:
            spelled = path.relative_to(self.run.path).as_posix()
        except ValueError:
            return path.as_posix()
        return "" if spelled == "." else spelled

    def path_of(self, step: int) -> str:
        """Find the checkpoint of a step.

        Returns:
            Its path relative to the run, "" where there is none.
        """
        found = next((one.path for one in self.run.checkpoints if one.step == step), None)
        return self.relative(found)


def some(number: int, noun: str, several: str | None = None) -> str:
    """Count something.

    Args:
        number: of them.
        noun: one of them.
        several: more of them, None for the noun with an s.

    Returns:
        "1 checkpoint", "30 checkpoints", "2 matrices".
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {several or noun + 's'}"


def counted(steps: tuple[int, ...] | list[int], most: int = 6) -> str:
    """Spell some steps.

    Returns:
        "step 36", "steps 36, 72 and 108", "steps 36, 72, ... and 900 (86 in all)".
    """
    listed = [f"{step}" for step in steps]
    if len(listed) == 1:
        return f"step {listed[0]}"
    if len(listed) > most:
        return f"steps {', '.join(listed[: most - 1])}, ... and {listed[-1]} ({len(listed)} in all)"
    return f"steps {', '.join(listed[:-1])} and {listed[-1]}"
