"""Say whether a retraining is the run: exact, close, or not, and then because of what."""

from __future__ import annotations

import math
from dataclasses import replace

from hnf_offline.rerun.readings import dropout_of
from hnf_offline.rerun.search import Found, replay
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.witness import EXACT_LOSS, Witness
from hnf_offline.retraining import CLOSE, EXACT, NOT_REPRODUCIBLE, Reproduction

#: Without a later checkpoint the losses alone must be able to tell the run from one with this rate.
PROBE = 0.9


def judge(start: Start, found: Found) -> Reproduction:
    """Turn the best reading into a verdict; never "exact" unless something could have shown otherwise.

    Args:
        start: where the retraining began.
        found: the best reading.

    Returns:
        The verdict with its figures.
    """
    witness = found.witness
    word, because = _word(start, found)
    return Reproduction(
        word,
        because,
        losses=len(witness.differences),
        loss_difference=witness.loss_difference,
        grad_norm_difference=max(witness.norm_differences.values(), default=None),
        first_mismatch=witness.first_mismatch,
        weights=tuple(witness.weights),
        assumed=found.recipe.words(),
        found=found.recipe.changed_from(found.likeliest) if word != NOT_REPRODUCIBLE else (),
    )


def _word(start: Start, found: Found) -> tuple[str, str]:
    witness = found.witness
    if found.recipe.fresh_state:
        return NOT_REPRODUCIBLE, _no_state(start)
    if not witness.differences and not witness.weights:
        return NOT_REPRODUCIBLE, (
            "nothing can be compared: the log has no loss of these steps and no checkpoint lies among them"
        )
    if witness.exact:
        if not witness.weights_tell and not _losses_can_tell(start, found):
            return CLOSE, (
                f"{_equal(witness)}, but a learning rate {1 - PROBE:.0%} lower would give the same losses and "
                f"no checkpoint {'with finite weights ' if witness.weights else ''}lies among these "
                "steps: that it is the run is likely, not shown"
            )
        if found.parted is not None:
            return EXACT, (
                f"from checkpoint to checkpoint {_equal(witness)}; in one go it parts from the run at step "
                f"{found.parted}, where rounding differences have grown"
            )
        return EXACT, _equal(witness)
    if witness.close and not _dropped(start, found):
        stepwise = "from checkpoint to checkpoint " if found.parted is not None else ""
        return CLOSE, stepwise + _near(witness)
    return NOT_REPRODUCIBLE, _cause(start, found)


def _dropped(start: Start, found: Found) -> bool:
    """Tell whether dropout that nobody can repeat explains what differs, be it little or much."""
    if not dropout_of(start.session.module) or start.random_state(start.checkpoint.step + 1) is not None:
        return False
    return found.first_loss is None or not found.first_loss <= EXACT_LOSS


def _no_state(start: Start) -> str:
    with_state = [point.step for point in start.run.checkpoints if point.optimizer_files]
    near = min(with_state, key=lambda step: abs(step - start.checkpoint.step), default=None)
    instead = "" if near is None else f"; checkpoint {near} has one"
    return f"checkpoint {start.checkpoint.step} has no optimizer state{instead}"


def _losses_can_tell(start: Start, found: Found) -> bool:
    """Retrain with lower rates: if the log's losses fit those as well, they prove nothing about the updates.

    Returns:
        True where the other rates are seen in the losses.
    """
    rates = start.rates
    lower = replace(start, rates=rates.scaled(PROBE))
    return not replay(lower, found.recipe, found.witness.last).exact


def _equal(witness: Witness) -> str:
    said: list[str] = []
    if witness.differences:
        count = len(witness.differences)
        said.append(
            f"{count} loss{'es equal' if count > 1 else ' equals'} the log to {_power(witness.loss_difference)}"
        )
    if witness.weights:
        largest = max(check.difference for check in witness.weights)
        said.append(
            f"weights at {_listed([check.step for check in witness.weights])} equal the checkpoint"
            f"{'s' if len(witness.weights) > 1 else ''} (largest difference {largest:.2g})"
        )
    return " and ".join(said)


def _near(witness: Witness) -> str:
    said: list[str] = []
    first = witness.first_mismatch
    if witness.differences:
        largest = witness.loss_difference or 0.0
        until = "" if first is None else f", the first that differs is that of step {first}"
        said.append(f"losses are within {largest:.2%} of the log{until}")
    if witness.weights:
        share = max(check.share for check in witness.weights)
        said.append(f"weights differ from the checkpoints by {share:.2%} of the way they travelled")
    return "; ".join(said)


def _cause(start: Start, found: Found) -> str:
    """Name what stands in the way, from where the replay leaves the run.

    Returns:
        One sentence.
    """
    witness, step = found.witness, start.checkpoint.step
    tried = (
        f"{found.tried} other readings (shifted steps, rates and batches, clipping, precision) fit no better"
    )
    if _dropped(start, found):
        return (
            f"the model has dropout ({dropout_of(start.session.module):g}) and the random states of its "
            "steps were not saved; "
            f"losses differ by up to {_percent(witness.loss_difference)}"
        )
    if found.first_loss is not None and found.first_loss > EXACT_LOSS:
        return (
            f"already the loss of step {step + 1}, which no update has touched, differs from the log by "
            f"{_percent(found.first_loss)}: these are not the rows of that step, or not in this precision; {tried}"
        )
    first = witness.first_mismatch
    weights = witness.first_weight_mismatch
    if first is None and weights is not None:
        share = next(check.share for check in witness.weights if check.step == weights)
        return (
            f"all losses equal the log, but the weights of checkpoint {weights} differ by {_percent(share)} of "
            f"the way they travelled: the updates were others (learning rate, clipping or weight decay); {tried}"
        )
    matched = sum(one <= EXACT_LOSS for one in witness.differences.values())
    return (
        f"the loss of step {first} is the first that differs from the log ({matched} of "
        f"{len(witness.differences)} agree, the largest difference is {_percent(witness.loss_difference)}): the "
        f"update before it was another one (learning rate, clipping, weight decay) or its batch was; {tried}"
    )


def _power(difference: float | None) -> str:
    if difference is None or difference == 0:
        return "the last digit"
    return f"{max(difference, 1e-12):.0e} relative".replace("e-0", "e-")


def _percent(share: float | None) -> str:
    if share is None or not math.isfinite(share):
        return "more than can be said (not finite)"
    return f"{share:.2g}-fold" if share >= 10 else f"{share:.2%}"


def _listed(steps: list[int]) -> str:
    if len(steps) > 4:
        return f"{steps[0]}, {steps[1]}, ... {steps[-1]}"
    return (
        " and ".join([", ".join(map(str, steps[:-1])), str(steps[-1])]) if len(steps) > 1 else str(steps[0])
    )
