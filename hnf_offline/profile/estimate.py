"""S without optimizer state: Adam's second moment, shaped by replayed gradients and sized by logged gradient norms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hnf_offline.linalg.stopping import StopRule
from hnf_offline.profile.noise import Noise
from hnf_offline.profile.rounding import without_rounding
from hnf_offline.profile.spectra import whole_spectra
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.whole import Hessian, allows_differences, whole_hessian
from hnf_offline.quantities.estimate import estimated_second_moment
from hnf_offline.quantities.optimizer import adam_step_metric
from hnf_offline.quantities.registry import computable
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.table import Row

#: S lay between the estimate divided by the first and multiplied by the second at all 94 checkpoints of three runs on
#: which it was held against the saved state. The two were chosen on these.
ABOVE, BELOW = 6.0, 2.0


def is_estimable(state: OptimizerState | None) -> bool:
    """Say whether S is to be estimated: Adam whose moments were not saved, of known total.

    Returns:
        False where S is exact, and where nothing can be said.
    """
    return state is not None and not state.saved and state.total_second_moment is not None


def estimate_rows(subject: Subject, hessian: Hessian, rule: StopRule, noise: Noise) -> list[Row]:
    """Estimate S of the whole model; never certified.

    Args:
        subject: module, rows, and what is known of the optimizer.
        hessian: the whole model's, with its gradient.
        rule: the accuracy of the eigenvalue; that of the estimate is another matter.
        noise: start vectors.

    Returns:
        One row; none where the replayed gradient is zero.
    """
    metric = estimated_metric(subject, hessian.gradients)
    if metric is None:
        return []
    found = whole_spectra(subject, hessian, metric, rule, noise, curvature=False)
    assert found.scaled is not None
    low, high = found.spread or (found.scaled.largest.value,) * 2
    rows: list[Row] = []
    for entry in computable(frozenset({"estimated_spectrum"}), "stability"):
        value = float(entry.function(estimated_spectrum=found.scaled))
        low, high = min(low, value) / ABOVE, max(high, value) * BELOW
        rows.append(
            Row(
                subject.step,
                "",
                "model",
                -1,
                entry.name,
                value,
                low,
                high,
                False,
                f"{subject.name} (P estimated)",
            )
        )
    return rows


def estimated_metric(subject: Subject, gradients: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Give the diagonal A of Adam with an estimated second moment.

    Returns:
        By parameter name, shaped as the parameters; None where the gradient is zero or not finite.
    """
    state = subject.optimizer
    assert state is not None and state.total_second_moment is not None
    squares = _mean_squares(subject, gradients)
    total = torch.stack([square.sum() for square in squares.values()]).sum()
    if not bool(torch.isfinite(total) & (total > 0)):
        return None
    scale = state.total_second_moment / total
    second = {name: estimated_second_moment(square, scale) for name, square in squares.items()}
    metric: dict[str, Tensor] = {}
    for name, moment in second.items():
        own = state.parameters[name]
        assert own.learning_rate is not None and own.beta1 is not None
        metric[name] = adam_step_metric(own.learning_rate, own.beta1, moment, own.eps or 0.0)
    return without_rounding(metric, second, gradients)


def _mean_squares(subject: Subject, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean over training batches of the squared gradient; of all rows where there is only one batch."""
    if len(subject.training_batches) < 2:
        return {name: gradient.square() for name, gradient in gradients.items()}
    exact = not allows_differences(subject.module)
    squares = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    for batches in subject.training_batches:
        own = whole_hessian(subject.module, batches, exact=exact, keep_graphs=False).gradients
        for name, gradient in own.items():
            squares[name] += gradient.square() / len(subject.training_batches)
    return squares
