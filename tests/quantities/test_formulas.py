"""Each formula on tensors for which the answer is known on paper."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hnf_offline.linalg.lanczos import Eigenvalue, Extremes
from hnf_offline.quantities.attention import attention_entropy as entropy_of_rows
from hnf_offline.quantities.attention import attention_logit_max as highest_of_rows
from hnf_offline.quantities.attention import attention_rows
from hnf_offline.quantities.attention import attention_saturation as saturation_of_rows
from hnf_offline.quantities.gradients import gradient_norm
from hnf_offline.quantities.hessian import (
    gradient_direction,
    lambda_max,
    lambda_min,
    stability_ratio,
    unstable_mass,
    update_direction,
)
from hnf_offline.quantities.logits import log_z as log_z_of
from hnf_offline.quantities.logits import predictions
from hnf_offline.quantities.logits import smallest_target_probability as smallest_of
from hnf_offline.quantities.norms import norm_inverse_sigma
from hnf_offline.quantities.optimizer import (
    adam_epsilon_share,
    adam_lag_rms,
    adam_step_metric,
    headroom,
    largest_stable_learning_rate,
    sgd_step_size,
)
from hnf_offline.quantities.precision import lost_updates
from hnf_offline.quantities.proxies import cross_entropy_proxy as cross_entropy_of
from hnf_offline.quantities.proxies import norm_proxy
from hnf_offline.quantities.proxies import softmax_proxy as softmax_of_rows
from hnf_offline.quantities.residual import residual_rms
from hnf_offline.quantities.weights import nonfinite_share

INFINITY = math.inf


def attention_entropy(logits: Tensor) -> Tensor:
    return entropy_of_rows(attention_rows(logits))


def attention_logit_max(logits: Tensor) -> Tensor:
    return highest_of_rows(attention_rows(logits))


def attention_saturation(logits: Tensor) -> Tensor:
    return saturation_of_rows(attention_rows(logits))


def softmax_proxy(logits: Tensor) -> Tensor:
    return softmax_of_rows(attention_rows(logits))


def log_z(logits: Tensor) -> Tensor:
    return log_z_of(predictions(logits, torch.zeros(len(logits), dtype=torch.int64))["log_partition"])


def smallest_target_probability(logits: Tensor, targets: Tensor) -> Tensor:
    return smallest_of(predictions(logits, targets)["target_log_probability"])


def cross_entropy_proxy(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy_of(predictions(logits, targets)["target_log_probability"])


def scores(seed: int, *, masked: bool = False) -> Tensor:
    """Attention scores [2, 3, 4, 4], causal if asked."""
    drawn = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
    return drawn.masked_fill(mask, -INFINITY) if masked else drawn


# attention


@pytest.mark.parametrize("keys", [1, 2, 7, 64])
def test_a_uniform_row_over_n_keys_has_entropy_log_n(keys: int) -> None:
    assert attention_entropy(torch.zeros(1, 1, 3, keys)).item() == pytest.approx(math.log(keys), abs=1e-6)


def test_masked_keys_do_not_count_and_blind_rows_are_left_out() -> None:
    logits = torch.zeros(1, 1, 3, 8)
    logits[..., 4:] = -INFINITY  # four keys are seen
    logits[0, 0, 1] = -INFINITY  # this query sees nothing at all
    assert attention_entropy(logits).item() == pytest.approx(math.log(4))
    assert attention_logit_max(logits).item() == 0
    assert attention_saturation(logits).item() == 0


def test_a_head_that_copies_has_no_entropy_and_is_saturated() -> None:
    logits = torch.zeros(2, 2, 5, 5)
    logits[:, 1, :, 0] = 1000.0
    entropy, saturation = attention_entropy(logits), attention_saturation(logits)
    assert entropy.tolist() == pytest.approx([math.log(5), 0.0])
    assert saturation.tolist() == [0.0, 1.0]
    assert attention_logit_max(logits).tolist() == [0.0, 1000.0]


def test_saturation_begins_at_99_percent() -> None:
    for share, expected in ((0.989, 0.0), (0.991, 1.0)):
        row = torch.tensor([share, 1 - share]).log().reshape(1, 1, 1, 2)
        assert attention_saturation(row).item() == expected
    # The first query of a causal model sees one key: no choice, no saturation.
    assert attention_saturation(torch.tensor([[[[0.0, -INFINITY]]]])).item() == 0.0


@given(seed=st.integers(0, 99), constant=st.floats(-50, 50), masked=st.booleans())
def test_a_constant_added_to_a_row_changes_neither_entropy_nor_saturation(
    seed: int, constant: float, masked: bool
) -> None:
    logits = scores(seed, masked=masked)
    shift = constant * torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(1, 1, 4, 1)
    assert torch.allclose(attention_entropy(logits + shift), attention_entropy(logits), atol=1e-9)
    assert torch.equal(attention_saturation(logits + shift), attention_saturation(logits))


@given(seed=st.integers(0, 99), order=st.permutations(range(4)), masked=st.booleans())
def test_the_order_of_keys_and_queries_does_not_matter(seed: int, order: list[int], masked: bool) -> None:
    logits = scores(seed, masked=masked)
    for permuted in (logits[..., order], logits[..., order, :]):
        assert torch.allclose(attention_entropy(permuted), attention_entropy(logits), atol=1e-12)
        assert torch.allclose(attention_saturation(permuted), attention_saturation(logits))
        assert torch.equal(attention_logit_max(permuted), attention_logit_max(logits))


@given(seed=st.integers(0, 99), masked=st.booleans())
def test_entropy_lies_between_zero_and_log_of_the_keys(seed: int, masked: bool) -> None:
    entropy = attention_entropy(scores(seed, masked=masked))
    assert bool((entropy >= 0).all()) and bool((entropy <= math.log(4) + 1e-12).all())


# output logits


def test_a_target_of_no_probability_leaves_log_z_as_it_is() -> None:
    logits = torch.tensor([[1.0, 2.0, -INFINITY], [0.5, -INFINITY, 3.0]])
    for targets in ([2, 0], [1, 0], [2, 1]):
        read = predictions(logits, torch.tensor(targets))
        assert torch.allclose(read["log_partition"], logits.logsumexp(dim=-1))
        correct = logits[[0, 1], targets]
        assert torch.allclose(read["target_log_probability"], correct - logits.logsumexp(dim=-1))


def test_log_z_is_the_mean_log_of_the_sum_of_exponentials() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(2), math.log(3), math.log(5), -INFINITY]])
    assert log_z(logits).item() == pytest.approx((math.log(4) + math.log(10)) / 2)
    assert log_z(logits + 7).item() == pytest.approx((math.log(4) + math.log(10)) / 2 + 7)


def test_p_min_is_the_smallest_probability_of_a_correct_token() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    assert smallest_target_probability(logits, torch.tensor([0, 2])).item() == pytest.approx(0.5)
    assert smallest_target_probability(logits, torch.tensor([0, 1])).item() == pytest.approx(0.1)


@given(seed=st.integers(0, 99))
def test_proxies_are_the_same_observation_in_powers_of_ten(seed: int) -> None:
    attention = scores(seed)
    assert softmax_proxy(attention).item() == pytest.approx(
        2 * float(attention_logit_max(attention).max()) / math.log(10)
    )
    scale = torch.rand(50, generator=torch.Generator().manual_seed(seed)) + 1e-3
    assert norm_proxy(scale).item() == pytest.approx(2 * math.log10(norm_inverse_sigma(scale)), abs=1e-5)
    logits, targets = attention.flatten(0, 2), torch.arange(24) % 4
    assert cross_entropy_proxy(logits, targets).item() == pytest.approx(
        -math.log10(smallest_target_probability(logits, targets))
    )


def test_a_proxy_stays_finite_where_the_number_itself_would_not() -> None:
    assert softmax_proxy(torch.full((1, 1, 1, 1), 1e4)).item() == pytest.approx(2e4 / math.log(10))
    logits = torch.tensor([[0.0, 5000.0]])
    assert smallest_target_probability(logits, torch.tensor([0])).item() == 0.0
    assert cross_entropy_proxy(logits, torch.tensor([0])).item() == pytest.approx(5000 / math.log(10))


# norms, residual stream, gradients, weights


def test_scales_and_norms() -> None:
    assert norm_inverse_sigma(torch.tensor([0.5, 0.25, 4.0])).item() == 4.0
    assert residual_rms(torch.tensor([[[3.0, -3.0], [3.0, 3.0]]])).item() == pytest.approx(3.0)
    assert gradient_norm(torch.tensor([3.0, -4.0])).item() == 5.0
    weight = torch.tensor([1.0, math.nan, INFINITY, -INFINITY, 0.0])
    assert nonfinite_share(weight).item() == pytest.approx(0.6)
    assert nonfinite_share(torch.zeros(3)).item() == 0.0


# the optimizer


def test_adam_at_beta1_of_point_nine_has_its_edge_at_38_over_eta() -> None:
    second = torch.tensor([1e-4, 4e-4], dtype=torch.float64)
    metric = adam_step_metric(0.01, 0.9, second, 0.0)
    assert metric.tolist() == pytest.approx([0.01 / (38 * 1e-2), 0.01 / (38 * 2e-2)])
    # epsilon stands beside the root, as in torch
    damped = adam_step_metric(0.01, 0.9, torch.zeros(1, dtype=torch.float64), 1e-8)
    assert damped.item() == pytest.approx(0.01 / 38 / 1e-8)
    assert adam_step_metric(0.01, 0.0, second, 0.0)[0].item() == pytest.approx(0.01 / 2 / 1e-2)


def stays_bounded(step_size: float, momentum: float, nesterov: bool, curvature: float) -> bool:
    """SGD on h/2 w^2, written out as torch documents it."""
    weight, buffer = 1.0, 0.0
    for step in range(4000):
        gradient = curvature * weight
        buffer = gradient if step == 0 else momentum * buffer + gradient
        weight -= step_size * (gradient + momentum * buffer if nesterov else buffer)
        if abs(weight) > 1e8:
            return False
    return True


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_stable_exactly_below_the_step_size_of_the_metric(momentum: float, nesterov: bool) -> None:
    curvature = 3.0
    largest = 1 / (sgd_step_size(1.0, momentum, nesterov=nesterov) * curvature)
    assert stays_bounded(largest * 0.99, momentum, nesterov, curvature)
    assert not stays_bounded(largest * 1.01, momentum, nesterov, curvature)


def test_step_sizes_of_sgd_in_closed_form() -> None:
    assert sgd_step_size(0.1) == pytest.approx(0.05)
    assert sgd_step_size(0.1, 0.9) == pytest.approx(0.1 / 3.8)
    assert sgd_step_size(0.1, 0.9, nesterov=True) == pytest.approx(0.1 * 2.8 / 3.8)
    assert sgd_step_size(0.1, 0.9, dampening=0.5) == pytest.approx(0.05 / 3.8)
    # dampening acts on the momentum buffer, and there is none
    assert sgd_step_size(0.1, 0.0, dampening=0.5) == pytest.approx(0.05)


def test_the_lag_is_one_where_the_second_moment_is_the_squared_gradient() -> None:
    gradient = torch.randn(30, generator=torch.Generator().manual_seed(0))
    epsilon = torch.full((30,), 1e-8)
    assert adam_lag_rms(gradient, gradient.square(), epsilon).item() == pytest.approx(1.0)
    assert adam_lag_rms(3 * gradient, gradient.square(), epsilon).item() == pytest.approx(3.0)
    # A second moment below epsilon squared counts as epsilon squared.
    assert adam_lag_rms(torch.full((1,), 1e-3), torch.zeros(1), torch.full((1,), 1e-3)).item() == (
        pytest.approx(1.0)
    )


def test_epsilon_bounds_the_entries_that_were_felt_less_than_it() -> None:
    second_moment = torch.tensor([0.0, 0.0, 1e-20, 1e-20, 1.0])  # two were never felt
    moved, epsilon = torch.ones(5), torch.full((5,), 1e-8)
    assert adam_epsilon_share(second_moment, epsilon, moved).item() == pytest.approx(2 / 3)
    assert adam_epsilon_share(second_moment, 1e-4 * epsilon, moved).item() == 0.0
    assert adam_epsilon_share(torch.zeros(5), epsilon, moved).item() == 0.0
    # What the rows do not move fades by itself: a token that is not among them.
    absent = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    assert adam_epsilon_share(second_moment, epsilon, absent).item() == pytest.approx(1 / 2)


def test_updates_are_lost_below_half_a_unit_of_the_last_place() -> None:
    # bfloat16 has 8 significant bits: next to 1 its numbers are 2^-7 apart, below 1 half of that.
    weight = torch.ones(4)
    update = torch.tensor([-(2.0**-9), -(2.0**-7), 2.0**-10, 0.0])
    for dtype, share in ((torch.bfloat16, 2 / 3), (torch.float16, 0.0), (torch.float32, 0.0)):
        assert lost_updates(weight, update, torch.empty(0, dtype=dtype)).item() == pytest.approx(share)
    assert lost_updates(weight, torch.zeros(4), torch.empty(0, dtype=torch.bfloat16)).item() == 0.0


@given(ratio=st.floats(1e-3, 1e3), rate=st.floats(1e-6, 1.0))
def test_headroom_times_the_rate_is_the_largest_stable_rate(ratio: float, rate: float) -> None:
    assert headroom(ratio) * rate == pytest.approx(largest_stable_learning_rate(rate, ratio))
    assert largest_stable_learning_rate(rate, 1.0) == rate


# curvature


def test_ends_of_the_spectrum() -> None:
    ends = Extremes(Eigenvalue(2.0, 0.0, True), Eigenvalue(-3.0, 0.0, True), torch.ones(1), 5)
    assert (lambda_max(ends), lambda_min(ends), stability_ratio(ends)) == (2.0, -3.0, 2.0)


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A Hessian, a positive metric and a vector, [6]."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    metric = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
    return square + square.T, metric, torch.randn(6, generator=generator, dtype=torch.float64)


@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), sign=st.sampled_from([-1, 1]))
def test_curvature_along_a_direction_does_not_depend_on_its_length(
    seed: int, scale: float, sign: int
) -> None:
    hessian, metric, vector = problem(seed)
    longer = sign * scale * vector
    for along in (gradient_direction, update_direction):
        assert along(longer, hessian @ longer, metric).item() == pytest.approx(
            along(vector, hessian @ vector, metric).item(), rel=1e-9
        )


@given(seed=st.integers(0, 99))
def test_the_update_never_sees_more_than_the_stability_ratio(seed: int) -> None:
    hessian, metric, update = problem(seed)
    root = metric.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * hessian * root)
    along = update_direction(update, hessian @ update, metric).item()
    assert values[0] - 1e-9 <= along <= values[-1] + 1e-9
    top = root * vectors[:, -1]  # the update that meets all of it
    assert update_direction(top, hessian @ top, metric).item() == pytest.approx(float(values[-1]))


def test_the_gradient_along_an_eigenvector_sees_its_eigenvalue() -> None:
    hessian = torch.diag(torch.tensor([4.0, 1.0]))
    gradient = torch.tensor([2.0, 0.0])
    assert gradient_direction(gradient, hessian @ gradient, torch.full((2,), 0.5)).item() == 2.0


def test_masses_of_the_layers_sum_to_one() -> None:
    vector = torch.nn.functional.normalize(torch.arange(1.0, 11.0), dim=0)
    shares = [unstable_mass(piece).item() for piece in vector.split([2, 5, 3])]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] == pytest.approx((1 + 4) / 385)
