"""Everything that is measured at one checkpoint, tier by tier, as rows of the long table."""

from __future__ import annotations

import torch

from hnf_offline.profile.derivatives import derivative_rows
from hnf_offline.profile.forward import forward_rows
from hnf_offline.profile.settings import TIERS, ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.quantities.registry import computable
from hnf_offline.table import Row


def measure(subject: Subject, settings: ProfileSettings) -> list[Row]:
    """Measure a checkpoint.

    Non-finite weights end it after `weight.nonfinite`: everything else would be NaN.

    Returns:
        Rows of the long table, unsorted.
    """
    rows = weights_rows(subject)
    if any(row.value > 0 for row in rows):
        return rows
    rows += forward_rows(subject)
    tier = TIERS.index(settings.tier)
    if tier >= TIERS.index("gradient"):
        rows += derivative_rows(subject, settings, curvature=tier >= TIERS.index("curvature"))
    return rows


def weights_rows(subject: Subject) -> list[Row]:
    """Count non-finite parameters, of the whole model and of every layer that has some.

    Returns:
        One row for the whole model, and one for each layer concerned.
    """
    entry = computable(frozenset({"weight"}), "forward")[0]
    parameters = dict(subject.module.named_parameters())
    shares = {
        layer: entry.function(torch.cat([part.gather(parameters[part.parameter]) for part in layer.parts]))
        for layer in subject.layers
    }
    total = sum(layer.size for layer in subject.layers)
    whole = float(sum(share * layer.size for layer, share in shares.items())) / total if total else 0.0
    rows = [Row(subject.step, "", "model", -1, entry.name, whole)]
    if whole > 0:
        rows += [
            Row(subject.step, layer.path, layer.kind, layer.depth, entry.name, float(share))
            for layer, share in shares.items()
            if float(share) > 0
        ]
    return rows
