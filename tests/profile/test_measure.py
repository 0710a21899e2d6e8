"""Eigenvalues against dense float64 blocks; S against the analytic threshold; planted observations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.forward import forward_rows
from hnf_offline.profile.measure import measure
from hnf_offline.profile.metric import step_metric
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.profile.whole import losses_of
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.run.optimizer import OptimizerState, ParameterState

CPU = torch.device("cpu")


def adam_state(module: nn.Module, *, learning_rate: float = 0.01, seed: int = 5) -> OptimizerState:
    generator = torch.Generator().manual_seed(seed)
    return OptimizerState(
        "adam",
        {
            name: ParameterState(
                learning_rate=learning_rate,
                beta1=0.9,
                beta2=0.99,
                eps=1e-8,
                weight_decay=0.0,
                step=40,
                exp_avg=0.01 * torch.randn(value.shape, generator=generator, dtype=value.dtype),
                exp_avg_sq=torch.rand(value.shape, generator=generator, dtype=value.dtype) * 1e-3 + 1e-6,
            )
            for name, value in module.named_parameters()
        },
    )


def subject_of(module: nn.Module, tokens: torch.Tensor, state: OptimizerState | None, labels=None) -> Subject:
    batch = ReplayBatch.of(tokens, labels, "replay")
    half = -(-len(tokens) // 2)
    return Subject(
        7, module, layers_of(module), state, batch.cut(half, CPU), batch.cut(len(tokens), CPU), "replay"
    )


def small_gpt(norm: str, dtype: torch.dtype = torch.float64) -> GPT:
    config = GPTConfig(11, 6, 2, 2, 8, mlp_width=12, norm=norm, tied=norm == "pre", initial_std=0.3)
    return GPT(config).initialise(torch.Generator().manual_seed(1)).to(dtype).eval()


def values(rows, quantity):
    return {row.layer: row for row in rows if row.quantity == quantity}


@pytest.mark.parametrize("norm", ["none", "pre", "post"])
def test_every_eigenvalue_equals_that_of_the_dense_block(norm):
    module = small_gpt(norm)
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
    state = adam_state(module)
    subject = subject_of(module, tokens, state)
    rows = measure(subject, ProfileSettings(dtype="float64", accuracy="converged"))
    names = [name for name, _ in module.named_parameters()]
    shapes = {name: value.shape for name, value in module.named_parameters()}
    flat = torch.cat([value.detach().flatten() for _, value in module.named_parameters()])

    def loss(vector: torch.Tensor) -> torch.Tensor:
        pieces = vector.split([math.prod(shapes[name]) for name in names])
        tensors = {name: piece.reshape(shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        logits = torch.func.functional_call(module, tensors, (tokens,))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = torch.autograd.functional.hessian(loss, flat, vectorize=False)
    offsets, place = {}, 0
    for name in names:
        offsets[name] = place
        place += math.prod(shapes[name])
    metric = step_metric(state, dict(module.named_parameters()))
    scale = torch.cat([metric[name].flatten() for name in names]).sqrt()
    scaled = scale[:, None] * exact * scale
    blocks = {"": torch.arange(place)}
    for layer in subject.layers:
        blocks[layer.path] = torch.cat([
            offsets[part.parameter]
            + (torch.arange(math.prod(part.shape)) if part.index is None else part.index)
            for part in layer.parts
        ])
    assert sum(len(index) for path, index in blocks.items() if path) == place
    for quantity, matrix, end in (
        ("hessian.lambda_max", exact, -1),
        ("hessian.lambda_min", exact, 0),
        ("hessian.stability_ratio", scaled, -1),
    ):
        measured = values(rows, quantity)
        assert set(measured) == set(blocks)
        for path, index in blocks.items():
            truth = float(torch.linalg.eigvalsh(matrix[index][:, index])[end])
            assert measured[path].value == pytest.approx(truth, rel=1e-6, abs=1e-8), (quantity, path)
            assert measured[path].low - 1e-6 <= truth <= measured[path].high + 1e-6


def test_interlacing_and_the_update_never_exceed_the_whole():
    module = small_gpt("none")
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
    rows = measure(
        subject_of(module, tokens, adam_state(module)), ProfileSettings(dtype="float64", accuracy="converged")
    )
    for quantity in ("hessian.lambda_max", "hessian.stability_ratio"):
        of = values(rows, quantity)
        assert all(row.value <= of[""].value + 1e-6 for path, row in of.items() if path)
    assert (
        values(rows, "hessian.update_direction")[""].value
        <= values(rows, "hessian.stability_ratio")[""].value
    )
    mass = values(rows, "hessian.unstable_mass")
    assert sum(row.value for row in mass.values()) == pytest.approx(1.0)
    s, headroom = (
        values(rows, "hessian.stability_ratio")[""].value,
        values(rows, "optimizer.headroom")[""].value,
    )
    assert headroom == pytest.approx(1 / s)
    assert values(rows, "optimizer.largest_stable_lr")[""].value == pytest.approx(0.01 / s)


class Quadratic(nn.Module):
    """Loss h/2 w^2 for one weight; takes tokens and ignores them."""

    def __init__(self, curvature: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
        self.curvature = curvature

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": 0.5 * self.curvature * self.weight.square().sum() + 0.0 * input_ids.sum()}


def stays_bounded_under_adam(rate_over_root_v: float, steps: int = 4000) -> bool:
    """Adam with EMA momentum on h = 1 and a frozen second moment: does the weight stay bounded?"""
    weight, momentum = 1.0, 0.0
    for _ in range(steps):
        momentum = 0.9 * momentum + 0.1 * weight
        weight -= rate_over_root_v * momentum
        if abs(weight) > 1e6:
            return False
    return True


def test_s_is_one_exactly_at_the_analytic_threshold_of_adam():
    assert stays_bounded_under_adam(38 * 0.999)
    assert not stays_bounded_under_adam(38 * 1.001)
    for factor in (0.5, 1.0, 1.7):
        module = Quadratic(1.0)
        second = 1e-4
        state = OptimizerState(
            "adam",
            {
                "weight": ParameterState(
                    learning_rate=38 * factor * math.sqrt(second),
                    beta1=0.9,
                    beta2=0.999,
                    eps=0.0,
                    step=10,
                    exp_avg=torch.tensor([0.1], dtype=torch.float64),
                    exp_avg_sq=torch.tensor([second * (1 - 0.999**10)], dtype=torch.float64),
                )
            },
        )
        rows = measure(subject_of(module, torch.zeros(2, 3, dtype=torch.int64), state), ProfileSettings())
        assert values(rows, "hessian.stability_ratio")[""].value == pytest.approx(factor, rel=1e-12)
        assert values(rows, "hessian.gradient_direction")[""].value == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_s_is_one_exactly_where_sgd_starts_to_diverge(momentum, nesterov):
    def bounded(rate: float) -> bool:
        weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=rate, momentum=momentum, nesterov=nesterov)
        for _ in range(3000):
            optimizer.zero_grad()
            (0.5 * 2.0 * weight.square().sum()).backward()
            optimizer.step()
            if abs(float(weight.detach())) > 1e6:
                return False
        return True

    module = Quadratic(2.0)

    def ratio(rate: float) -> float:
        own = ParameterState(learning_rate=rate, momentum=momentum, dampening=0.0, nesterov=nesterov, step=1)
        state = OptimizerState("sgd", {"weight": own})
        rows = measure(subject_of(module, torch.zeros(1, 2, dtype=torch.int64), state), ProfileSettings())
        return values(rows, "hessian.stability_ratio")[""].value

    edge = 1 / ratio(1.0)
    assert bounded(edge * 0.995)
    assert not bounded(edge * 1.005)


class OneHead(nn.Module):
    """Attention whose scores are planted."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.head = nn.Linear(1, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        mask = torch.full(self.scores.shape[-2:], float("-inf")).triu(1)
        weights = (self.scores + mask).softmax(-1).expand(len(input_ids), -1, -1, -1)
        return self.head(weights.sum(dim=(1,), keepdim=False).sum(-1, keepdim=True) * 0 + 1.0)


def test_attention_is_measured_at_the_softmax_and_the_worst_head_is_named():
    scores = torch.zeros(1, 3, 4, 4)
    scores[0, 1, 3, 2] = 50.0  # head 1 copies key 2 at the last query
    rows = forward_rows(subject_of(OneHead(scores), torch.randint(0, 3, (4, 4)), None))
    found = {row.quantity: row for row in rows if row.layer == "softmax"}
    assert found["attention.logit_max"].value == pytest.approx(50.0)
    assert found["attention.logit_max_head"].value == 1
    # uniform rows over 1..4 keys have entropies log 1..log 4; head 1 lost the last one
    assert found["attention.entropy"].value == pytest.approx(
        (math.log(1) + math.log(2) + math.log(3)) / 4, abs=1e-4
    )
    assert found["attention.entropy_head"].value == 1
    assert found["attention.saturation"].value == pytest.approx(1 / 3)  # one of the three rows with a choice
    assert found["proxy.softmax_log10"].value == pytest.approx(100 / math.log(10))


def test_norm_inputs_logits_and_residual_follow_their_formulas():
    module = small_gpt("pre", torch.float32)
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
    rows = forward_rows(subject_of(module, tokens, None))
    captured = {}
    module.transformer["ln_f"].register_forward_pre_hook(
        lambda _m, args: captured.setdefault("x", args[0].detach())
    )
    with torch.no_grad():
        logits = module(tokens)
    sigma = captured["x"].std(dim=-1, unbiased=False)
    by = {(row.layer, row.quantity): row for row in rows}
    assert by["transformer.ln_f", "norm.inverse_sigma"].value == pytest.approx(
        float(1 / sigma.min()), rel=1e-5
    )
    assert by["transformer.ln_f", "proxy.norm_log10"].value == pytest.approx(
        -2 * math.log10(float(sigma.min())), rel=1e-5
    )
    assert by["transformer.h.1", "residual.rms"].value == pytest.approx(
        float(captured["x"].square().mean().sqrt()), rel=1e-5
    )
    predicted = logits[:, :-1].flatten(0, 1)
    assert by["", "logits.log_z"].value == pytest.approx(float(predicted.logsumexp(-1).mean()), rel=1e-5)
    target = predicted.softmax(-1).gather(-1, tokens[:, 1:].reshape(-1, 1))
    assert by["", "logits.p_min"].value == pytest.approx(float(target.min()), rel=1e-4)
    assert by["", "proxy.cross_entropy_log10"].value == pytest.approx(
        -math.log10(float(target.min())), rel=1e-4
    )
    assert by["", "replay.loss"].value == pytest.approx(float(-target.log().mean()), rel=1e-5)
    low, high = by["", "replay.loss"].low, by["", "replay.loss"].high
    assert low < by["", "replay.loss"].value < high


def test_fused_attention_modules_of_torch_are_seen_in_eval_mode():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(16, 5)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(self.embed(input_ids)))

    module = Encoder().eval()
    subject = subject_of(module, torch.randint(0, 5, (4, 6)), None)
    kinds = {layer.path: layer.kind for layer in subject.layers}
    assert kinds["encoder.layers.0.self_attn.in_proj.query"] == "query"
    assert kinds["encoder.layers.1.self_attn.out_proj"] == "out"
    rows = measure(subject, ProfileSettings())
    assert {"encoder.layers.0.self_attn.softmax", "encoder.layers.1.self_attn.softmax"} <= {
        row.layer for row in rows
    }
    assert all(math.isfinite(row.value) for row in rows)


def test_non_finite_weights_are_a_finding_and_end_the_measurement():
    module = small_gpt("none", torch.float32)
    with torch.no_grad():
        module.transformer["h"][1].mlp.c_fc.weight[0, :] = math.nan
    rows = measure(subject_of(module, torch.randint(0, 11, (4, 6)), None), ProfileSettings())
    assert {row.quantity for row in rows} == {"weight.nonfinite"}
    assert values(rows, "weight.nonfinite")["transformer.h.1.mlp.c_fc"].value == pytest.approx(8 / 108)


def test_gradient_norms_and_lag_follow_their_formulas():
    module = small_gpt("none")
    tokens = torch.randint(0, 11, (5, 6), generator=torch.Generator().manual_seed(2))
    state = adam_state(module)
    subject = subject_of(module, tokens, state)
    rows = measure(subject, ProfileSettings(tier="gradient"))
    losses_of(module, subject.batches)[0]({}).backward()
    gradients = {name: value.grad for name, value in module.named_parameters()}
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    assert values(rows, "gradient.norm")[""].value == pytest.approx(float(whole.norm()))
    embedding = gradients["transformer.wte.weight"]
    assert values(rows, "gradient.norm")["transformer.wte"].value == pytest.approx(float(embedding.norm()))
    second = state.parameters["transformer.wte.weight"].exp_avg_sq / (1 - 0.99**40)
    assert values(rows, "adam.lag_rms")["transformer.wte"].value == pytest.approx(
        float((embedding.square() / second).mean().sqrt())
    )
    assert not {row.quantity for row in rows} & {"hessian.lambda_max", "hessian.stability_ratio"}


def test_without_optimizer_state_the_stability_ratio_is_left_out():
    module = small_gpt("none")
    rows = measure(subject_of(module, torch.randint(0, 11, (4, 6)), None), ProfileSettings())
    names = {row.quantity for row in rows}
    assert "hessian.lambda_max" in names
    assert not names & {
        "hessian.stability_ratio",
        "optimizer.headroom",
        "hessian.unstable_mass",
        "adam.lag_rms",
    }
