"""The one place that knows this package's engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.curvature.problem import WHOLE, Answer, Found, Problem
from hnf_offline.linalg.extremes import Extremes
from hnf_offline.linalg.stopping import ACCURACIES
from hnf_offline.profile.batch import MicroBatch
from hnf_offline.profile.memory import copies_together, saved_bytes
from hnf_offline.profile.noise import Noise
from hnf_offline.profile.spectra import layer_spectra, wants_exact, whole_spectra
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.suffix.calibration import ProductChoice
from hnf_offline.profile.whole import whole_hessian

__all__ = ["ACCURACIES", "Ours", "ours"]


@dataclass(frozen=True, slots=True)
class Ours:
    """What this package found, and what it remembers for the next checkpoint.

    Attributes:
        answer: by target.
        products: how each layer's products are made, found out at the first checkpoint.
    """

    answer: Answer
    products: ProductChoice


def ours(problem: Problem, accuracy: str, previous: Ours | None = None) -> Ours:
    """Measure every layer and the whole model, as a profile of the tier `curvature` does.

    Args:
        problem: checkpoint and rows; all its layers are measured, whatever its targets.
        accuracy: one of `ACCURACIES`.
        previous: what was found at the previous checkpoint; None starts cold, calibration included.

    Returns:
        Both ends of every target's spectrum.
    """
    rule = ACCURACIES[accuracy]
    batches = (MicroBatch(problem.tokens, None, 1.0),)
    layers = tuple(problem.layers.values())
    products = ProductChoice() if previous is None else previous.products
    rows = len(problem.tokens)
    copies = copies_together(saved_bytes(problem.module, problem.tokens[:1], None), rows, rows)
    subject = Subject(
        0, problem.module, layers, None, batches, batches, "rows", copies=copies, products=products
    )
    hessian = whole_hessian(problem.module, batches, exact=wants_exact(subject, rule), keep_graphs=True)
    noise = Noise(0, torch.device("cpu"), torch.float32)
    whole = whole_spectra(subject, hessian, None, rule, noise, curvature=True)
    assert whole.raw is not None
    found = layer_spectra(subject, hessian, None, whole, rule, noise, None)
    answer = {spectra.layer.path: _found(spectra.raw) for spectra in found}
    return Ours({**answer, WHOLE: _found(whole.raw)}, products)


def _found(extremes: Extremes) -> Found:
    ends = (extremes.largest.value, extremes.smallest.value)
    return Found(max(ends, key=abs), extremes.products, ends[0], extremes.largest.certified)
