"""Dynamic modes of linear layers with known spectra, beside an independent dense decomposition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hnf_offline.linalg.dynamic_modes import fitted, kreiss_constant, whitened
from hnf_offline.quantities import koopman
from hnf_offline.quantities.koopman import Transition
from hnf_offline.quantities.registry import catalogue

MASSES = ("koopman.near_unit_mass", "koopman.growing_mass", "koopman.damped_mass", "koopman.middle_mass")


def layer(values: list[float], *, seed: int = 0, skew: float = 0.0) -> NDArray[np.float64]:
    """A linear layer with these eigenvalues; normal for skew 0."""
    drawn = np.random.default_rng(seed)
    rotation = np.linalg.qr(drawn.normal(size=(len(values), len(values))))[0]
    basis = rotation + skew * drawn.normal(size=rotation.shape)
    return basis @ np.diag(values) @ np.linalg.inv(basis)


def seen(
    operator: NDArray[np.float64], samples: int = 400, noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = np.random.default_rng(1)
    before = drawn.normal(size=(samples, len(operator))) * np.geomspace(2, 0.2, len(operator)) + 1.5
    after = before @ operator.T - 0.5 + noise * drawn.normal(size=before.shape)
    return torch.tensor(before), torch.tensor(after)


def transition(before: torch.Tensor, after: torch.Tensor) -> Transition:
    inputs, outputs = whitened(before, after, before.shape[1])
    operator = fitted(inputs, outputs)
    return Transition(operator, *torch.linalg.eig(operator), inputs, outputs)


def dense(before: torch.Tensor, after: torch.Tensor) -> tuple[NDArray[np.complex128], float]:
    """Whitening by ZCA and the pseudo-inverse, as the paper writes it; eigenvalues and the unexplained share."""
    x, y = (one.numpy().T - one.numpy().T.mean(axis=1, keepdims=True) for one in (before, after))
    sizes, axes = np.linalg.eigh(x @ x.T / (x.shape[1] - 1) + 1e-5 * np.eye(len(x)))
    whitening = axes @ np.diag(sizes**-0.5) @ axes.T
    x, y = whitening @ x, whitening @ y
    operator = y @ np.linalg.pinv(x)
    return np.linalg.eigvals(operator), float(np.linalg.norm(y - operator @ x) / np.linalg.norm(y - x))


@pytest.mark.parametrize("skew", [0.0, 0.4])
def test_masses_of_a_known_spectrum(skew: float) -> None:
    values = [1.3, 1.06, 1.04, 1.0, 0.97, 0.91, 0.89, 0.82, 0.79, 0.3]
    moduli = transition(*seen(layer(values, skew=skew))).values.abs()
    found = {name: float(catalogue()[name].function(moduli)) for name in MASSES}
    assert found == pytest.approx(dict(zip(MASSES, (0.4, 0.2, 0.2, 0.2), strict=True)))
    assert float(koopman.spectral_radius(moduli)) == pytest.approx(1.3)
    assert koopman.modes(moduli) == 10


@pytest.mark.parametrize("seed", range(5))
def test_an_independent_dense_decomposition_agrees(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    before, after = seen(layer(drawn.uniform(0.5, 1.4, 12).tolist(), seed=seed, skew=0.3), 300, noise=0.3)
    values, unexplained = dense(before, after)
    one = transition(before, after)
    moduli = one.values.abs()
    expected = {
        "koopman.near_unit_mass": np.mean((abs(values) >= 0.9) & (abs(values) <= 1.05)),
        "koopman.growing_mass": np.mean(abs(values) > 1.05),
        "koopman.damped_mass": np.mean(abs(values) < 0.8),
    }
    assert {name: float(catalogue()[name].function(moduli)) for name in expected} == pytest.approx(expected)
    assert float(koopman.spectral_radius(moduli)) == pytest.approx(abs(values).max(), rel=1e-6)
    assert float(koopman.nonlinearity(one)) == pytest.approx(unexplained, rel=1e-4)


def test_a_normal_map_has_condition_one_and_a_skewed_one_that_of_its_eigenvectors() -> None:
    # White inputs: whitening then leaves the map as it is.
    white = torch.linalg.qr(torch.randn(600, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    white = white - white.mean(dim=0)
    for skew in (0.0, 0.5):
        operator = layer([1.2, 1.0, 0.9, 0.7, 0.5, 0.2], skew=skew)
        one = transition(white * 30, white * 30 @ torch.tensor(operator).T)
        vectors = np.linalg.eig(one.operator.numpy())[1]
        assert float(koopman.eigenvector_condition(one)) == pytest.approx(np.linalg.cond(vectors), rel=1e-6)
        assert (float(koopman.eigenvector_condition(one)) < 1.1) == (skew == 0)


def test_an_untouched_stream_is_all_near_unit_and_linear() -> None:
    before, _ = seen(np.eye(5))
    one = transition(before, before)
    assert float(koopman.near_unit_mass(one.values.abs())) == 1
    assert float(koopman.nonlinearity(one)) < 1e-3, "nothing is changed, so nothing is left unexplained"
    assert float(koopman.resolved_share(one)) == 1


def test_modes_of_noise_are_not_resolved() -> None:
    before, _ = seen(np.eye(5))
    one = transition(before, torch.randn(before.shape, generator=torch.Generator().manual_seed(3)).double())
    assert float(koopman.resolved_share(one)) == 0
    assert float(koopman.nonlinearity(one)) > 0.5


@pytest.mark.parametrize(("diagonal", "above"), [(0.9, 5.0), (0.99, 1.0), (0.5, 100.0)])
def test_the_kreiss_constant_is_that_of_a_fine_grid_and_bounds_powers(diagonal: float, above: float) -> None:
    operator = np.array([[diagonal, above], [0.0, diagonal]])
    grid = [
        radius / np.linalg.svd((1 + radius) * np.exp(1j * angle) * np.eye(2) - operator, compute_uv=False)[-1]
        for radius in np.logspace(-4, 3, 400)
        for angle in np.linspace(0, math.pi, 9)
    ]
    powers = max(np.linalg.norm(np.linalg.matrix_power(operator, n), 2) for n in range(600))
    found = kreiss_constant(torch.tensor(operator))
    assert found == pytest.approx(max(grid), rel=1e-3)
    assert found <= powers * (1 + 1e-9) and powers <= math.e * 2 * found


def test_the_kreiss_constant_of_a_large_matrix_is_that_of_its_block() -> None:
    wide = torch.block_diag(torch.tensor([[0.9, 5.0], [0.0, 0.9]]), *[torch.eye(1) * 0.5] * 60).double()
    turn = torch.linalg.qr(torch.randn(62, 62, generator=torch.Generator().manual_seed(0)).double())[0]
    assert kreiss_constant(turn @ wide @ turn.mT) == pytest.approx(12.52, rel=1e-3)


def test_a_contraction_never_grows_and_beyond_the_unit_circle_there_is_no_bound() -> None:
    assert kreiss_constant(torch.tensor(layer([0.9, 0.5, 0.1]))) == pytest.approx(1)
    assert kreiss_constant(torch.tensor(layer([1.01, 0.5]))) == math.inf
    assert kreiss_constant(torch.empty(0, 0)) == 1


def test_a_stream_that_grows_before_it_decays_has_the_kreiss_constant_of_its_map() -> None:
    white = torch.linalg.qr(torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double())[0]
    white = white - white.mean(dim=0)
    # Whitening scales all directions alike here, up to what 400 tokens leave, and turns them.
    white = torch.linalg.qr(white)[0] * 400**0.5
    shear = torch.tensor([[0.9, 5.0], [0.0, 0.9]], dtype=torch.float64)
    assert koopman.kreiss(transition(white, white @ shear.mT)) == pytest.approx(12.52, rel=0.01)
