"""Embedding shrink: the embedding's own path is shrunk, whatever else uses the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.training import Training
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate

CONFIG = GPTConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=8)
TOKENS = torch.randint(0, 13, (4, 8), generator=torch.Generator().manual_seed(0))
Train = Callable[..., Training]


def model(tied: bool) -> GPT:
    torch.manual_seed(0)
    return GPT(replace(CONFIG, tied=tied)).initialise(torch.Generator().manual_seed(1)).double()


class Explicit(nn.Module):
    """The definition: e -> alpha e + (1 - alpha) e.detach()."""

    def __init__(self, inner: nn.Embedding, alpha: float) -> None:
        super().__init__()
        self.inner, self.alpha = inner, alpha

    def forward(self, tokens: Tensor) -> Tensor:
        given = self.inner(tokens)
        return self.alpha * given + (1 - self.alpha) * given.detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_definition(tied: bool, train: Train) -> None:
    mine, defined = model(tied), model(tied)
    train(mine, TOKENS, "embedding-shrink=0.1").advance()
    defined.transformer["wte"] = Explicit(defined.transformer["wte"], 0.1)  # type: ignore[arg-type]
    evaluate(defined, TOKENS, None).loss.backward()
    for parameter, other in zip(mine.parameters(), defined.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_a_tied_weight_keeps_the_heads_gradient(train: Train) -> None:
    tied = model(True)
    train(tied, TOKENS, "embedding-shrink=0").advance()
    assert tied.lm_head.weight.grad is not None
    assert tied.lm_head.weight.grad.abs().sum() > 0
    untied = model(False)
    train(untied, TOKENS, "embedding-shrink=0").advance()
    assert untied.transformer["wte"].weight.grad.abs().sum() == 0  # type: ignore[union-attr, operator]


def test_positions_and_the_function_stay(train: Train) -> None:
    shrunk, plain = model(False), model(False)
    with_policy, without = train(shrunk, TOKENS, "embedding-shrink=0.1"), train(plain, TOKENS)
    assert torch.equal(with_policy.advance().loss, without.advance().loss)  # type: ignore[arg-type]
    positions = [one.transformer["wpe"].weight.grad for one in (shrunk, plain)]  # type: ignore[union-attr]
    assert torch.equal(*positions)  # type: ignore[arg-type]
    with_policy.end()
    assert not any(part._forward_hooks for part in shrunk.modules())


def test_a_model_without_a_token_embedding_is_refused(train: Train) -> None:
    class OneHot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(13, 13)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(nn.functional.one_hot(input_ids, 13).float())  # type: ignore[no-any-return]

    with pytest.raises(UsageError, match="looks up the tokens"):
        train(OneHot(), TOKENS, "embedding-shrink=0.1").advance()


@pytest.mark.parametrize("value", ["", "1", "-0.1", "nan", "x", "0.1,0.2"])
def test_a_factor_that_does_not_shrink_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"write embedding-shrink=0\.1"):
        make_policies(f"embedding-shrink={value}")
