"""QK rescale: logits on the same batch come down to the limit, in every layout of query and key projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import UsageError
from hnf_offline.rerun.attention import watching_logits
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate

Train = Callable[..., Training]
TOKENS = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0))


def logits_of(module: nn.Module) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    with watching_logits(module, seen):
        evaluate(module, TOKENS, None)
    return seen


def sharpen(module: nn.Module) -> nn.Module:
    """Give the projections biases and weights large enough that some logits are."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(word in name for word in ("c_attn", "q_proj", "k_proj", "query", "key")):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def hf(name: str, **sizes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, vocab_size=50, **sizes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-any-return]


SIZES: dict[str, int] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "built-in": lambda: GPT(
        GPTConfig(vocab_size=50, block_size=12, n_layer=2, n_head=4, n_embd=16)
    ).initialise(),
    "llama": lambda: hf("llama", **SIZES),
    "llama, eager": lambda: hf("llama", **SIZES, attn_implementation="eager"),
    "llama, shared keys": lambda: hf("llama", **SIZES, num_key_value_heads=2),
    "qwen2, biases and shared keys": lambda: hf("qwen2", **SIZES, num_key_value_heads=1),
    "gpt2, fused and transposed": lambda: hf("gpt2", n_embd=16, n_layer=2, n_head=4),
    "gpt_neox, fused by head": lambda: hf("gpt_neox", **SIZES),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_on_the_same_batch_come_down_to_the_limit(name: str, train: Train) -> None:
    module = sharpen(MODELS[name]())
    before = logits_of(module)
    limit = float(torch.cat(list(before.values())).median())
    # A learning rate of 0 leaves only the rescaling.
    training = train(module, TOKENS, f"qk-rescale={limit}")
    training.advance()
    (first, *_), after = list(before), logits_of(module)
    # In the first block nothing before the attention has changed: each head's logits scale exactly.
    torch.testing.assert_close(after[first], before[first].clamp(max=limit), rtol=1e-4, atol=1e-5)
    assert (before[first] > limit).any() or (before[list(before)[1]] > limit).any()
    training.advance()
    training.advance()
    assert max(float(logits.max()) for logits in logits_of(module).values()) <= limit * 1.01
    assert training.policies[0].notes()[0].startswith("heads rescaled")


def test_heads_below_the_limit_and_everything_else_stay_bit_for_bit(train: Train) -> None:
    module = sharpen(MODELS["built-in"]())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    heads = logits_of(module)["transformer.h.0.attn"]
    limit = float(heads.sort().values[-2:].mean())  # between the largest head and the next
    train(module, TOKENS, f"qk-rescale={limit}").advance()
    largest = int(heads.argmax())
    moved = (
        module.state_dict()["transformer.h.0.attn.c_attn.weight"]
        != before["transformer.h.0.attn.c_attn.weight"]
    )
    rows = moved.any(dim=1).nonzero().flatten().tolist()
    own = range(4 * largest, 4 * largest + 4)
    assert rows == [*own, *(16 + row for row in own)]
    for name, value in module.state_dict().items():
        assert "c_attn" in name or torch.equal(value, before[name]), name


def test_a_limit_that_is_never_reached_changes_not_one_bit(start: Start) -> None:
    def losses(spelling: str | None) -> list[float]:
        training = start.training(Recipe(start.kinds[0]), make_policies(spelling) if spelling else ())
        taken = [float(training.advance().loss) for _ in range(6)]  # type: ignore[arg-type]
        training.end()
        notes = [note for policy in training.policies for note in policy.notes()]
        assert not notes or notes[0].startswith("no attention logit came above 100, so nothing was changed")
        return taken

    assert losses("qk-rescale=100") == losses(None)


def test_micro_batches_count_together(train: Train) -> None:
    whole, pieces = sharpen(MODELS["built-in"]()), sharpen(MODELS["built-in"]())
    pieces.load_state_dict(whole.state_dict())
    train(whole, TOKENS, "qk-rescale=0.5").advance()
    train(pieces, TOKENS, "qk-rescale=0.5", pieces=2).advance()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(value, pieces.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_logits_that_are_not_finite_scale_nothing(train: Train) -> None:
    def missing(spelling: str | None) -> list[int]:
        module = sharpen(MODELS["built-in"]())
        with torch.no_grad():
            module.get_parameter("transformer.h.0.attn.c_attn.weight")[0, 0] = float("nan")
        train(module, TOKENS, spelling).advance()
        return [int(value.isnan().sum()) for value in module.state_dict().values()]

    assert missing("qk-rescale=0.5") == missing(None)


def test_normalised_queries_are_refused(train: Train) -> None:
    with pytest.raises(UsageError, match="q_norm normalises queries or keys"):
        train(hf("qwen3", **SIZES, head_dim=4), TOKENS, "qk-rescale=100")


def test_a_model_without_such_projections_is_refused(train: Train) -> None:
    with pytest.raises(UsageError, match="cannot be told apart"):
        train(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50)), TOKENS, "qk-rescale=100")


def test_attention_that_cannot_be_watched_is_refused(train: Train) -> None:
    class Linear(nn.Module):
        """Attention without a softmax."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)
            self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, input_ids: Tensor) -> Tensor:
            stream = self.embed(input_ids)
            mixed = self.q_proj(stream) @ self.k_proj(stream).transpose(1, 2) @ stream
            return self.head(mixed)  # type: ignore[no-any-return]

    with pytest.raises(UsageError, match="cannot be watched"):
        train(Linear(), TOKENS, "qk-rescale=100").advance()


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "many", "1,2"])
def test_a_limit_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="write qk-rescale="):
        make_policies(f"qk-rescale={value}")
