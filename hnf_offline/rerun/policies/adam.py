"""Change Adam's betas midway without a jump: its moments are rescaled so that their bias correction stays right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError

if TYPE_CHECKING:
    from hnf_offline.rerun.training import Training

FIRST, SECOND = 0, 1
#: The state tensors of each moment.
TENSORS = (("exp_avg",), ("exp_avg_sq", "max_exp_avg_sq"))


def require_adam(training: Training, policy: str) -> None:
    """Refuse a policy that only Adam and AdamW know.

    Raises:
        UsageError: if the run was trained with something else.
    """
    if training.recipe.kind not in {"adam", "adamw"}:
        raise UsageError(
            f"{policy} is a setting of Adam, and this run was trained with {training.recipe.kind.upper()}",
            remedy="use a policy of the learning rate, of clipping or of weight decay",
        )


def set_beta(training: Training, moment: int, beta: float) -> None:
    """Change beta1 or beta2 of all parameters, and rescale the moment it belongs to.

    After t updates a moment is a sum of gradients (or their squares) with weights that sum to 1 - old^t, and torch
    divides it by 1 - beta^t from then on. Multiplied by (1 - beta^t) / (1 - old^t), the moment's corrected value
    stays what it was, and the weights sum to 1 - beta^u at every later update u as well: the bias correction stays
    exact. Without it, beta2 = .999 -> .95 after 10 updates would divide by .43 what has the weight .01 and take
    steps six times too large: a spike made by the intervention itself.

    Args:
        training: a training with Adam or AdamW.
        moment: FIRST or SECOND.
        beta: the new value.
    """
    for group in training.optimizer.param_groups:
        betas = list(group["betas"])
        old, betas[moment] = float(betas[moment]), beta
        group["betas"] = tuple(betas)
        if old == beta:
            continue
        for parameter in group["params"]:
            state = training.optimizer.state.get(parameter)
            updates = float(state["step"]) if state else 0.0
            if not state or not updates > 0:
                continue
            for name in TENSORS[moment]:
                if name in state:
                    state[name].mul_((1 - beta**updates) / (1 - old**updates))
    training.forget_stability()


def beta_weighing(newest: float, updates: float, beta: float) -> float:
    """Find the beta whose corrected average over `updates` updates gives the newest value a certain weight.

    Solves (1 - x) / (1 - x^updates) = newest, which falls from 1 at x = 0, by bisection between 0 and `beta`.

    Returns:
        x.
    """
    low, high = 0.0, beta
    for _ in range(64):
        middle = (low + high) / 2
        if (1 - middle) / (1 - middle**updates) > newest:
            low = middle
        else:
            high = middle
    return low if newest >= 1 else high
