"""The referee of the curvature engine: dense float64 Hessians of tiny models, and how far a measured table is off."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hnf_offline.profile.metric import step_metric
from hnf_offline.run.model.layers import Layer
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.table import Row

#: What float32 leaves of a zero, as a share of the spectral norm.
ROUNDING = 1e-6
#: Quantity -> (which matrix, which end of its spectrum).
ENDS = {
    "hessian.lambda_max": ("raw", "largest"),
    "hessian.lambda_min": ("raw", "smallest"),
    "hessian.stability_ratio": ("scaled", "largest"),
}


@dataclass(frozen=True)
class Spectrum:
    """Both ends of a dense block."""

    smallest: float
    largest: float

    @property
    def size(self) -> float:
        """The spectral norm."""
        return max(-self.smallest, self.largest)


@dataclass(frozen=True)
class Dense:
    """The dense Hessian of a model, float64, and where each of its layers lies in it.

    Attributes:
        hessian: [n, n], symmetrised.
        asymmetry: largest |H - H'| over the largest |H| before that.
        places: layer path -> rows of the layer; "" is the whole model.
        metric: the diagonal of the step metric A, [n]; None without an optimizer.
    """

    hessian: Tensor
    asymmetry: float
    places: dict[str, Tensor]
    metric: Tensor | None

    def spectra(self) -> dict[tuple[str, str], Spectrum]:
        """Ends of every block of H ("raw") and of A^1/2 H A^1/2 ("scaled"), by (matrix, layer path)."""
        matrices = {"raw": self.hessian}
        if self.metric is not None:
            root = self.metric.sqrt()
            matrices["scaled"] = root[:, None] * self.hessian * root
        found: dict[tuple[str, str], Spectrum] = {}
        for name, matrix in matrices.items():
            for path, rows in self.places.items():
                values = torch.linalg.eigvalsh(matrix[rows][:, rows])
                found[name, path] = Spectrum(float(values[0]), float(values[-1]))
        return found


def dense_hessian(
    module: nn.Module,
    layers: Sequence[Layer],
    tokens: Tensor,
    labels: Tensor | None = None,
    state: OptimizerState | None = None,
    *,
    chunk: int = 128,
) -> Dense:
    """Differentiate the mean loss of some rows twice, in float64, in all parameters of a copy of the module."""
    exact = copy.deepcopy(module).double()
    parameters = {name: value for name, value in exact.named_parameters() if value.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):
        loss = evaluate(exact, tokens, labels).loss
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, materialize_grads=True
    )
    gradient = torch.cat([one.flatten() for one in gradients])
    columns: list[Tensor] = []
    for chosen in torch.eye(len(gradient), dtype=torch.float64).split(chunk):
        rows = torch.autograd.grad(
            gradient,
            list(parameters.values()),
            grad_outputs=chosen,
            is_grads_batched=True,
            retain_graph=True,
            materialize_grads=True,
        )
        columns.append(torch.cat([row.flatten(1) for row in rows], dim=1))
    matrix = torch.cat(columns)
    metric = None if state is None else step_metric(state, parameters)
    return Dense(
        (matrix + matrix.T) / 2,
        float((matrix - matrix.T).abs().max() / matrix.abs().max()),
        _places(parameters, layers),
        None if metric is None else torch.cat([metric[name].flatten() for name in parameters]),
    )


def dense_block(
    module: nn.Module,
    layer: Layer,
    tokens: Tensor,
    labels: Tensor | None = None,
    state: OptimizerState | None = None,
    *,
    chunk: int = 128,
) -> dict[str, Spectrum]:
    """Ends of one layer's block alone, of H ("raw") and of A^1/2 H A^1/2 ("scaled"), in float64."""
    exact = copy.deepcopy(module).double()
    parameters = dict(exact.named_parameters())
    names = list(dict.fromkeys(part.parameter for part in layer.parts))
    own = [parameters[name] for name in names]
    with sdpa_kernel(SDPBackend.MATH):
        loss = evaluate(exact, tokens, labels).loss
    gradients = dict(zip(names, torch.autograd.grad(loss, own, create_graph=True), strict=True))
    gradient = torch.cat([part.gather(gradients[part.parameter]) for part in layer.parts])
    columns: list[Tensor] = []
    for chosen in torch.eye(len(gradient), dtype=torch.float64).split(chunk):
        rows = torch.autograd.grad(
            gradient,
            own,
            grad_outputs=chosen,
            is_grads_batched=True,
            retain_graph=True,
            materialize_grads=True,
        )
        by_name = dict(zip(names, rows, strict=True))
        columns.append(
            torch.cat(
                [
                    by_name[part.parameter].flatten(1)[:, slice(None) if part.index is None else part.index]
                    for part in layer.parts
                ],
                dim=1,
            )
        )
    matrices = {"raw": torch.cat(columns)}
    metric = None if state is None else step_metric(state, parameters)
    if metric is not None:
        root = torch.cat([part.gather(metric[part.parameter]) for part in layer.parts]).sqrt()
        matrices["scaled"] = root[:, None] * matrices["raw"] * root
    found: dict[str, Spectrum] = {}
    for name, matrix in matrices.items():
        values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
        found[name] = Spectrum(float(values[0]), float(values[-1]))
    return found


def _places(parameters: dict[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
    first: dict[str, int] = {}
    place = 0
    for name, value in parameters.items():
        first[name] = place
        place += value.numel()
    places = {"": torch.arange(place)}
    for layer in layers:
        places[layer.path] = torch.cat([
            first[part.parameter]
            + (torch.arange(math.prod(part.shape)) if part.index is None else part.index)
            for part in layer.parts
        ])
    covered = torch.cat([rows for path, rows in places.items() if path])
    assert torch.equal(covered.sort().values, places[""]), "every parameter is in exactly one layer"
    return places


@dataclass(frozen=True)
class Judged:
    """One measured eigenvalue beside the truth.

    Attributes:
        place: model and checkpoint, for messages.
        layer: path, "" for the whole model.
        quantity: one of `ENDS`.
        value: as measured.
        truth: of the dense block.
        size: spectral norm of the dense block.
        certified: what the measurement says of itself.
        dominant: whether this end is the larger one in size; always so for S.
    """

    place: str
    layer: str
    quantity: str
    value: float
    truth: float
    size: float
    certified: bool
    dominant: bool

    @property
    def error(self) -> float:
        """Relative error, inf where the sign is wrong or the value is not finite."""
        if max(abs(self.value), abs(self.truth)) <= ROUNDING * self.size:
            return 0.0  # both are zero, as far as float32 can tell
        if not math.isfinite(self.value) or self.value * self.truth < 0:
            return math.inf
        return abs(self.value - self.truth) / abs(self.truth)

    def __str__(self) -> str:
        sure = "certified" if self.certified else "not certified"
        return (
            f"{self.place} {self.layer or 'model'} {self.quantity} {self.value:.6g} "
            f"truth {self.truth:.6g} ({self.error:.2%} off, {sure})"
        )


def judge(rows: Iterable[Row], dense: Dense, place: str) -> list[Judged]:
    """Hold every measured extreme eigenvalue against the dense blocks; one that was not measured fails here."""
    return judge_against(rows, dense.spectra(), place)


def judge_against(
    rows: Iterable[Row], spectra: Mapping[tuple[str, str], Spectrum], place: str
) -> list[Judged]:
    """Hold measured extreme eigenvalues against known spectra, by (matrix, layer path)."""
    measured = {(row.quantity, row.layer): row for row in rows if row.quantity in ENDS}
    judged: list[Judged] = []
    for quantity, (wanted, end) in ENDS.items():
        for (matrix, path), spectrum in spectra.items():
            if matrix != wanted:
                continue
            row = measured[quantity, path]
            truth = spectrum.largest if end == "largest" else spectrum.smallest
            dominant = matrix == "scaled" or abs(truth) == spectrum.size
            judged.append(
                Judged(place, path, quantity, row.value, truth, spectrum.size, row.certified, dominant)
            )
    return judged


@dataclass(frozen=True)
class Figures:
    """How good a set of measured eigenvalues is.

    Attributes:
        total: how many there are.
        certified: how many say that they are certified.
        certified_off_one: certified values more than 1 % off, as a share of the certified ones.
        certified_off_five: certified values more than 5 % off; there should be none.
        off_one: values more than 1 % off, as a share of all.
        worst: the largest error of a certified value.
    """

    total: int
    certified: int
    certified_off_one: float
    certified_off_five: int
    off_one: float
    worst: float

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> Figures:
        """Count."""
        sure = [one for one in judged if one.certified]
        return cls(
            len(judged),
            len(sure),
            sum(one.error > 0.01 for one in sure) / max(1, len(sure)),
            sum(one.error > 0.05 for one in sure),
            sum(one.error > 0.01 for one in judged) / max(1, len(judged)),
            max((one.error for one in sure), default=0.0),
        )

    def __str__(self) -> str:
        return (
            f"{self.total} values, {self.certified} certified; more than 1 % off: {self.off_one:.2%} of all, "
            f"{self.certified_off_one:.2%} of the certified; more than 5 % off and certified: "
            f"{self.certified_off_five}; worst certified {self.worst:.2%}"
        )


def listing(judged: Sequence[Judged], beyond: float) -> str:
    """Spell the values that are more than `beyond` off, the worst first."""
    off = sorted((one for one in judged if one.error > beyond), key=lambda one: -one.error)
    return "\n".join(str(one) for one in off)
