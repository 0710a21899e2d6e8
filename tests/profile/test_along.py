"""Losses and logits along a direction; whatever happens, the weights stay what they were."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hnf_offline.profile.along import Ray, Replay, logit_change
from hnf_offline.profile.batch import MicroBatch, ReplayBatch
from hnf_offline.run.model.gpt import GPT, GPTConfig

TOKENS = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))


def gpt(dtype: torch.dtype = torch.float64) -> GPT:
    config = GPTConfig(11, 6, 2, 2, 8, mlp_width=12, norm="pre", tied=True, initial_std=0.3)
    return GPT(config).initialise(torch.Generator().manual_seed(1)).to(dtype).eval()


def ray_of(module: nn.Module, *, rows: int = 3, scale: float = 0.01) -> Ray:
    batches = ReplayBatch.of(TOKENS, None, "replay").cut(rows, torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    update = {
        name: scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in module.named_parameters()
    }
    return Ray(Replay(module), batches, update)


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_the_loss_along_an_update_is_that_of_a_module_with_those_weights() -> None:
    module, moved = gpt(), gpt()
    ray = ray_of(module)
    before = bits(module)
    with torch.no_grad():
        for name, value in moved.named_parameters():
            value.sub_(0.7 * ray.update[name])
        truth = nn.functional.cross_entropy(moved(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    assert ray.loss(0.7) == pytest.approx(float(truth), rel=1e-12)
    assert ray.loss(0.7) != ray.loss(0.0)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("method", ["loss", "logits"])
def test_weights_are_restored_bit_for_bit_after_an_exception(method: str) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = gpt(torch.float32)
            self.calls = 0

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:  # in the midst of the micro-batches
                raise ValueError("no")
            return self.inner(input_ids)

    module = Fails()
    ray = ray_of(module)
    before = bits(module)
    own = {name: id(value) for name, value in module.named_parameters()}
    with pytest.raises(ValueError, match="no"):
        ray.loss(0.5) if method == "loss" else logit_change(ray)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {name: id(value) for name, value in module.named_parameters()} == own
    assert all(value.requires_grad for value in module.parameters())


def test_the_logits_of_a_linear_model_change_by_the_update_itself() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 11, dtype=torch.float64)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.table(input_ids)

    module = Linear()
    ray = ray_of(module)
    found = logit_change(ray)
    assert found is not None and found.exact
    change = -ray.update["table.weight"][TOKENS[:, :-1].flatten()]
    assert torch.allclose(found.span, change.amax(-1) - change.amin(-1), rtol=1e-12)


def test_forward_mode_agrees_with_differences_of_the_logits_and_of_the_loss() -> None:
    module = gpt()
    ray = ray_of(module)
    found = logit_change(ray)
    assert found is not None and found.exact
    step = 1e-5
    moved = [gpt(), gpt()]
    with torch.no_grad():
        for other, multiple in zip(moved, (-step, step), strict=True):
            for name, value in other.named_parameters():
                value.sub_(multiple * ray.update[name])
        low, high = (other(TOKENS)[:, :-1].flatten(0, 1) for other in moved)
    change = (high - low) / (2 * step)
    assert torch.allclose(found.span, change.amax(-1) - change.amin(-1), rtol=1e-6)
    assert found.slope == pytest.approx((ray.loss(step) - ray.loss(-step)) / (2 * step), rel=1e-6)


class NoForwardMode(torch.autograd.Function):
    """The square, without a forward derivative."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.square()

    @staticmethod
    def backward(ctx, upstream):
        (values,) = ctx.saved_tensors
        return 2 * values * upstream


def test_without_a_forward_derivative_differences_stand_in_and_say_so() -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 11, dtype=torch.float64)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return NoForwardMode.apply(self.table(input_ids))

    module = Squares()
    ray = ray_of(module)
    found = logit_change(ray)
    assert found is not None and not found.exact and math.isnan(found.slope)
    rows = TOKENS[:, :-1].flatten()
    change = -2 * module.table.weight[rows] * ray.update["table.weight"][rows]
    assert torch.allclose(found.span, change.amax(-1) - change.amin(-1), rtol=1e-6)


def test_torch_encoders_are_differentiated_too() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 11)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(self.embed(input_ids)))

    torch.manual_seed(0)
    module = Encoder().double().eval()
    ray = ray_of(module)
    found = logit_change(ray)
    assert found is not None and found.exact
    assert found.slope == pytest.approx((ray.loss(1e-4) - ray.loss(-1e-4)) / 2e-4, rel=1e-5)


def test_a_module_that_hides_its_logits_has_no_logit_change() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.weight.square().sum() + 0.0 * input_ids.sum()}

    assert logit_change(ray_of(Hidden())) is None


def test_micro_batches_make_no_difference() -> None:
    module = gpt()
    together, apart = ray_of(module, rows=4), ray_of(module, rows=1)
    assert isinstance(together.batches[0], MicroBatch) and len(apart.batches) == 4
    assert together.loss(1.3) == pytest.approx(apart.loss(1.3), rel=1e-12)
    one, several = logit_change(together), logit_change(apart)
    assert one is not None and several is not None
    assert torch.allclose(one.span, several.span, rtol=1e-12)
    assert one.slope == pytest.approx(several.slope, rel=1e-12)
