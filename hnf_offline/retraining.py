"""What retraining from a checkpoint gave: the records behind `rerun.json`. Torch-free, beside `findings`.

`rerun` fills them, `report` prints them; nobody computes anything after this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hnf_offline.findings import Alarm, Spike
from hnf_offline.strict_json import plain

SCHEMA = 1

#: The words of a verdict.
EXACT, CLOSE, NOT_REPRODUCIBLE = "exact", "close", "not_reproducible"


@dataclass(frozen=True, slots=True)
class WeightCheck:
    """Retrained weights against those of a later checkpoint.

    Attributes:
        step: step of the checkpoint.
        difference: largest absolute difference of a weight.
        travelled: largest absolute change of a weight since the checkpoint the retraining began at.
        share: length of the difference of all weights over the length of the way they travelled. (Single weights
            whose gradients are nearly zero differ more: Adam divides them by nearly nothing.)
    """

    step: int
    difference: float
    travelled: float
    share: float


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Whether retraining gave the run again.

    Attributes:
        word: "exact", "close" or "not_reproducible".
        because: one sentence with the figures; where it is not exact, what stands in the way.
        losses: steps whose loss was compared with the log.
        loss_difference: largest relative difference of a loss, None where none could be compared.
        grad_norm_difference: the same for the gradient norm.
        first_mismatch: first step whose loss differs by more than "exact" allows, None where none does.
        weights: the checkpoints on the way.
        assumed: how the run was taken to be trained, in words ("learning rate of the log, one step late").
        found: which of these were found by trying, because the obvious ones did not fit; empty otherwise.
    """

    word: str
    because: str
    losses: int = 0
    loss_difference: float | None = None
    grad_norm_difference: float | None = None
    first_mismatch: int | None = None
    weights: tuple[WeightCheck, ...] = ()
    assumed: tuple[str, ...] = ()
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arm:
    """One retraining: as was, or under a policy.

    Attributes:
        policy: as spelled on the command line; "as was" for the run itself.
        steps: the steps trained, in order.
        loss: the loss of each step, before its update; NaN and infinity kept, None where no batch was taken.
        grad_norm: norm of the gradient before clipping.
        learning_rate: rate of each step.
        stability_steps: steps at which S was measured (weights after that update).
        stability_ratio: S there.
        stability_low: lower ends of its error bars (residual, and spread over batches), None where exact.
        stability_high: upper ends.
        stability_certified: False where the eigenvalue has not settled.
        spikes: the loss spikes of the arm, found in the log up to the start and these losses.
        formula: formula of the policy, "" for as was.
        cost: what the policy costs a step, in words.
        reference: where the policy comes from.
        outcome: one sentence: "no spike, loss 2.16 at step 177 instead of 3.12".
        notes: what happened that losses do not show ("3 updates were skipped").
        clear: whether the final loss differs from that of "as was" by more than the butterfly band; None where
            there is no band.
        seconds: wall time.
    """

    policy: str
    steps: tuple[int, ...]
    loss: tuple[float | None, ...]
    grad_norm: tuple[float | None, ...]
    learning_rate: tuple[float | None, ...]
    stability_steps: tuple[int, ...] = ()
    stability_ratio: tuple[float, ...] = ()
    stability_low: tuple[float | None, ...] = ()
    stability_high: tuple[float | None, ...] = ()
    stability_certified: tuple[bool, ...] = ()
    spikes: tuple[Spike, ...] = ()
    formula: str = ""
    cost: str = ""
    reference: str = ""
    outcome: str = ""
    notes: tuple[str, ...] = ()
    clear: bool | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Twins:
    """The run again from slightly or wholly different conditions: how much of an effect is chance.

    Attributes:
        kind: "butterfly" (perturbed weights, same batches) or "statistical" (other batches, where the run's own
            cannot be replayed).
        count: number of twins.
        perturbation: relative size of the perturbation of the weights, None for statistical twins.
        steps: the steps.
        low: lowest loss of all twins at each step.
        high: highest loss.
        lyapunov_rate: growth rate a step of the distance to the twins, None where it cannot be told.
        lyapunov_low: lowest rate of a twin.
        lyapunov_high: highest rate of a twin.
        text: one sentence on how to read it.
    """

    kind: str
    count: int
    perturbation: float | None
    steps: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    lyapunov_rate: float | None = None
    lyapunov_low: float | None = None
    lyapunov_high: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class LargestStable:
    """The largest constant learning rate at which replays do not spike, beside lr/S.

    Attributes:
        checkpoint: where the replays begin.
        steps: how many steps each replay has.
        learning_rate: the rate in use at the checkpoint.
        stable: largest rate that was tried and did not spike, None where all did.
        unstable: smallest rate that was tried and spiked, None where none did.
        from_curvature: lr/S at the checkpoint.
        from_curvature_low: lower end of its error bar.
        from_curvature_high: upper end of its error bar.
        tried: (rate, spiked, peak loss) of every replay.
        text: one sentence.
    """

    checkpoint: int
    steps: int
    learning_rate: float
    stable: float | None
    unstable: float | None
    from_curvature: float | None
    from_curvature_low: float | None
    from_curvature_high: float | None
    tried: tuple[tuple[float, bool, float], ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Retraining:
    """Everything one `hnf zoom` or `hnf whatif` found (`rerun.json`, schema 1).

    Attributes:
        kind: "zoom" or "whatif".
        run: name, path, model, optimizer (JSON values).
        start: step of the checkpoint it begins at.
        stop: last step trained.
        reproduction: whether the first arm is the run.
        arms: the first is "as was".
        twins: the band that chance alone gives, None where no twins were asked for.
        largest_stable: the calibration of lr/S, None where it was not asked for.
        notes: sentences worth telling, in order.
        made: versions, time, device, seconds: the only part that differs between two identical reruns.
        alarms: what a live monitor would have said within the measured steps, the earliest known first.
    """

    kind: str
    run: Mapping[str, Any]
    start: int
    stop: int
    reproduction: Reproduction
    arms: tuple[Arm, ...]
    twins: Twins | None = None
    largest_stable: LargestStable | None = None
    notes: tuple[str, ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give it as one JSON value, as design.md names the keys.

        Returns:
            Plain dicts, lists, strings and numbers; NaN and infinities become None.
        """
        reproduction = asdict(self.reproduction)
        weights = self.reproduction.weights
        result = plain({
            "schema": SCHEMA,
            "kind": self.kind,
            "run": dict(self.run),
            "from": self.start,
            "to": self.stop,
            "verdict": self.reproduction.word,
            "because": self.reproduction.because,
            "loss_difference_max": self.reproduction.loss_difference,
            "weight_difference_max": max((check.difference for check in weights), default=None),
            "reproduction": reproduction,
            "arms": [asdict(arm) for arm in self.arms],
            "twins": None if self.twins is None else asdict(self.twins),
            "largest_stable_lr": None if self.largest_stable is None else asdict(self.largest_stable),
            "notes": list(self.notes),
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "made": dict(self.made),
        })
        assert isinstance(result, dict)
        return result
