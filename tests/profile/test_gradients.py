"""The gradient tier against gradients that are written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.gradients import check_rows, gradient_noise, gradients_and_noise
from hnf_offline.profile.measure import measure
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.run.model.loss import IGNORED, evaluate
from hnf_offline.run.optimizer import OptimizerState, ParameterState
from hnf_offline.table import Row

CPU = torch.device("cpu")
GRADIENT = ProfileSettings(tier="gradient", dtype="float64")


def gpt(blocks: int = 3) -> GPT:
    config = GPTConfig(11, 8, blocks, 2, 8, mlp_width=12, norm="pre", initial_std=0.3)
    return GPT(config).initialise(torch.Generator().manual_seed(1)).double().eval()


def drawn_tokens(rows: int = 8) -> Tensor:
    return torch.randint(0, 11, (rows, 8), generator=torch.Generator().manual_seed(2))


def subject_of(module: nn.Module, tokens: Tensor, state: OptimizerState | None, together: int = 8) -> Subject:
    batch = ReplayBatch.of(tokens, None, "replay")
    cut = batch.cut(together, CPU)
    return Subject(7, module, layers_of(module), state, cut, cut, "replay")


def state_of(module: nn.Module, kind: str) -> OptimizerState:
    generator = torch.Generator().manual_seed(3)

    def own(value: Tensor) -> ParameterState:
        moment = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if kind == "sgd":
            return ParameterState(learning_rate=0.1, momentum=0.9, weight_decay=0.0, momentum_buffer=moment)
        second = torch.rand(value.shape, generator=generator, dtype=value.dtype) + 1e-3
        return ParameterState(
            learning_rate=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, step=50, exp_avg=moment,
            exp_avg_sq=second,
        )  # fmt: skip

    return OptimizerState(kind, {name: own(value) for name, value in module.named_parameters()})


def of(rows: list[Row], quantity: str) -> dict[str, Row]:
    return {row.layer: row for row in rows if row.quantity == quantity}


def gradients_of(module: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    named = dict(module.named_parameters())
    loss = evaluate(module, tokens, None).loss
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_what_the_optimizer_will_do_is_what_torch_does(kind: str) -> None:
    module, tokens = gpt(), drawn_tokens()
    state = state_of(module, kind)
    rows = measure(subject_of(module, tokens, state), GRADIENT)
    gradients = gradients_of(module, tokens)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for name, value in module.named_parameters():
        value.grad = gradients[name].clone()
        own = state.parameters[name]
        if kind == "sgd":
            optimizer.state[value] = {"momentum_buffer": own.momentum_buffer.clone()}
        else:
            optimizer.state[value] = {
                "step": torch.tensor(50.0),
                "exp_avg": own.exp_avg.clone(),
                "exp_avg_sq": own.exp_avg_sq.clone(),
            }
    optimizer.step()
    moved = {name: value.detach() - before[name] for name, value in module.named_parameters()}

    def norm(tensors: dict[str, Tensor], prefix: str) -> float:
        return math.sqrt(sum(float(v.square().sum()) for n, v in tensors.items() if n.startswith(prefix)))

    ratio, rate = of(rows, "gradient.next_update_ratio"), of(rows, "gradient.effective_lr")
    for layer, prefix in (("", ""), ("transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_fc.")):
        assert ratio[layer].value == pytest.approx(norm(moved, prefix) / norm(before, prefix))
        assert rate[layer].value == pytest.approx(norm(moved, prefix) / norm(gradients, prefix))
    cosine = of(rows, "gradient.momentum_cosine")
    one = "transformer.h.2.mlp.c_fc.weight"
    name = "momentum_buffer" if kind == "sgd" else "exp_avg"
    if sum(n.startswith("transformer.h.2.mlp.c_fc.") for n in before) == 1:
        moment = getattr(state.parameters[one], name)
        expected = torch.nn.functional.cosine_similarity(gradients[one].flatten(), moment.flatten(), dim=0)
        assert cosine["transformer.h.2.mlp.c_fc"].value == pytest.approx(expected.item())
    flat = [torch.cat([t.flatten() for t in part]) for part in (
        gradients.values(), [getattr(own, name) for own in state.parameters.values()],
    )]  # fmt: skip
    assert cosine[""].value == pytest.approx(
        torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0).item()
    )
    assert len([row for row in rows if row.quantity == "gradient.norm" and row.layer == ""]) == 1
    assert ("gradient.ema_ratio" in {row.quantity for row in rows}) == (kind != "sgd")


def test_flow_and_depth_are_those_of_the_blocks() -> None:
    module, tokens = gpt(4), drawn_tokens()
    rows = measure(subject_of(module, tokens, None), GRADIENT)
    norms, flow = of(rows, "gradient.norm"), of(rows, "gradient.flow_ratio")
    for block in range(3):
        one, next_one = (f"transformer.h.{at}.mlp.c_fc" for at in (block, block + 1))
        assert flow[one].value == pytest.approx(norms[one].value / norms[next_one].value)
    assert "transformer.h.3.mlp.c_fc" not in flow
    gradients = gradients_of(module, tokens)
    logs = [
        math.log(sum(float(v.square().sum()) for n, v in gradients.items() if f".h.{at}." in n)) / 2
        for at in range(4)
    ]
    slope = (3 * (logs[3] - logs[0]) + (logs[2] - logs[1])) / 10
    factor = of(rows, "gradient.depth_factor")[""]
    assert factor.value == pytest.approx(math.exp(-slope))
    assert factor.low is not None and factor.high is not None and factor.low < factor.value < factor.high
    assert not of(measure(subject_of(gpt(2), tokens, None), GRADIENT), "gradient.depth_factor")


@pytest.mark.parametrize("together", [1, 3, 16])
def test_noise_is_that_of_single_sequences_gradients_however_the_rows_are_cut(together: int) -> None:
    module, tokens = gpt(1), drawn_tokens(16)
    whole = gradients_of(module, tokens)
    noise = gradient_noise(module, ReplayBatch.of(tokens, None, "").cut(together, CPU), whole)
    assert noise is not None
    assert noise.sizes.tolist() == [2.0] * 4 and noise.total == 16 and noise.tokens_per_sequence == 7
    for number in range(4):
        own = gradients_of(module, tokens[2 * number : 2 * number + 2])
        apart = sum(float((own[name] - whole[name]).square().sum()) for name in whole)
        along = sum(float(((own[name] - whole[name]) * whole[name]).sum()) for name in whole)
        assert noise.squared_distances[number] == pytest.approx(apart)
        assert noise.projections[number] == pytest.approx(along)
    assert gradient_noise(module, ReplayBatch.of(tokens[:3], None, "").cut(3, CPU), whole) is None


@pytest.mark.parametrize("together", [1, 3, 16])
@pytest.mark.parametrize("count", [3, 4, 11, 16])
def test_one_pass_gives_the_gradient_and_the_noise(together: int, count: int) -> None:
    module, tokens = gpt(1), drawn_tokens(16)[:count]
    labels = tokens.clone()
    labels[0, 2:] = IGNORED  # rows weigh as much as they predict
    labels[-1] = IGNORED
    batches = ReplayBatch.of(tokens, labels, "").cut(together, CPU)
    named = dict(module.named_parameters())
    loss = evaluate(module, tokens, labels).loss
    whole = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    gradients, noise = gradients_and_noise(module, batches, together)
    assert list(gradients) == list(whole)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, whole[name], atol=1e-10)
    expected = gradient_noise(module, batches, whole)
    if expected is None:
        assert noise is None
        return
    assert noise is not None
    for one in ("sizes", "total", "squared_distances", "projections", "squared_norm", "tokens_per_sequence"):
        assert getattr(noise, one) == pytest.approx(getattr(expected, one), rel=1e-6, abs=1e-12), one


def test_the_noise_scale_of_a_model_agrees_with_all_its_single_gradients() -> None:
    module, tokens = gpt(1), drawn_tokens(32)
    each = [torch.cat([g.flatten() for g in gradients_of(module, row[None]).values()]) for row in tokens]
    stacked = torch.stack(each)
    trace = stacked.var(dim=0).sum().item()
    rows = measure(subject_of(module, tokens, None, 32), GRADIENT)
    found = of(rows, "gradient.variance_trace")[""]
    assert found.low is not None and found.high is not None and found.low <= trace <= found.high
    square = stacked.mean(dim=0).square().sum().item() - trace / 32
    found = of(rows, "gradient.squared_mean")[""]
    assert found.low is not None and found.high is not None and found.low <= square <= found.high


class Cut(nn.Module):
    """One linear layer whose gradient is halved on the way back, if asked."""

    def __init__(self, halved: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.head = nn.Linear(5, 11)
        self.halved = halved

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embedding(input_ids)
        return self.head(0.5 * hidden + 0.5 * hidden.detach() if self.halved else hidden)


def test_the_check_passes_a_right_gradient_and_finds_a_wrong_one() -> None:
    torch.manual_seed(0)
    tokens = drawn_tokens()
    for module, wrong in ((gpt().float(), False), (Cut(False), False), (Cut(True), True)):
        before = [value.detach().clone() for value in module.parameters()]
        (row,) = check_rows(subject_of(module, tokens, None), seed=0)
        assert row.value > 1e-2 if wrong else row.value < 1e-6
        assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


def test_the_check_is_made_where_it_is_asked_for_and_refused_where_there_is_no_gradient() -> None:
    from hnf_offline.errors import UsageError
    from hnf_offline.options import AccuracyName, PrecisionName, TierName, profile_settings

    def settings(tier: TierName) -> ProfileSettings:
        return profile_settings(
            tier, None, 1, None, "cpu", PrecisionName.float32, None, None, accuracy=AccuracyName.screen,
            gradient_check=True,
        )  # fmt: skip

    subject = subject_of(gpt(1), drawn_tokens(), None)
    assert of(measure(subject, settings(TierName.gradient)), "gradient.check_error")[""].value < 1e-6
    assert not of(measure(subject, GRADIENT), "gradient.check_error")
    with pytest.raises(UsageError, match="not measured by --tier forward"):
        settings(TierName.forward)
