"""Koopman shaping: masses against numpy on planted dynamics, gradients, and what it does to a training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hnf_offline.errors import UsageError
from hnf_offline.rerun.policies.koopman_shaping import near_unit_mass, shaping_loss
from hnf_offline.rerun.policies.registry import make_policies
from hnf_offline.rerun.recipe import Recipe
from hnf_offline.rerun.start import Start
from hnf_offline.rerun.training import Training

Train = Callable[..., Training]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Planted(nn.Module):
    """Two blocks whose maps from stream to stream are known linear ones; a loss that knows nothing of them."""

    class Block(nn.Module):
        def __init__(self, eigenvalues: np.ndarray, seed: int) -> None:
            super().__init__()
            basis = np.random.default_rng(seed).normal(size=(6, 6)) + 3 * np.eye(6)
            self.inner = nn.Linear(6, 6)
            self.inner.weight.data = torch.tensor(basis @ np.diag(eigenvalues) @ np.linalg.inv(basis)).float()

        def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
            return self.inner(hidden_states), None

    def __init__(self, *eigenvalues: np.ndarray) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 6)
        self.blocks = nn.ModuleList(Planted.Block(values, seed) for seed, values in enumerate(eigenvalues))
        self.head = nn.Linear(6, 50)

    def forward(self, input_ids: Tensor) -> Tensor:
        stream = self.embed(input_ids)
        for block in self.blocks:
            stream, _ = block(hidden_states=stream)
        return self.head(stream)  # type: ignore[no-any-return]


TOKENS = torch.randint(0, 50, (8, 20), generator=torch.Generator().manual_seed(0))
FIRST, SECOND = np.array([0.2, 0.5, 0.93, 1.0, 1.02, 1.4]), np.array([0.1, 0.3, 0.5, 0.96, 0.97, 1.1])


def test_masses_and_loss_are_those_of_the_planted_eigenvalues(train: Train) -> None:
    training = train(Planted(FIRST, SECOND), TOKENS, "koopman-shaping=0.15,every=1,share=1,target=0.3")
    training.advance()
    near = [
        (sigmoid(20 * (values - 0.9)) * sigmoid(20 * (1.05 - values))).mean() for values in (FIRST, SECOND)
    ]
    assert training.policies[0].notes() == (
        f"near-unit mass {np.mean(near):.2f} when first taken, {np.mean(near):.2f} when last",
    )
    for values, mass in zip((FIRST, SECOND), near, strict=True):
        moduli = torch.tensor(values)
        outside = (sigmoid(20 * (values - 1.05)) * np.log1p(np.exp(values - 1.05)) ** 2).sum()
        assert float(near_unit_mass(moduli)) == pytest.approx(mass, rel=1e-9)
        assert float(shaping_loss(moduli, 0.3)) == pytest.approx(outside + (mass - 0.3) ** 2, rel=1e-9)


def test_the_penalty_itself_is_the_weighted_mean_of_the_blocks(train: Train) -> None:
    module = Planted(FIRST, SECOND)
    shaped = train(module, TOKENS, "koopman-shaping=0.15,every=1,share=1,target=0.3")
    micro = shaped.batches.of(1)[0]
    from hnf_offline.run.model.loss import evaluate

    with shaped.policies[0].forward(shaped, micro):
        outcome = evaluate(module, micro.tokens, None)
    extra = shaped.policies[0].penalty(shaped, 1, outcome, micro)
    expected = np.mean([float(shaping_loss(torch.tensor(values), 0.3)) for values in (FIRST, SECOND)])
    assert extra is not None
    assert float(extra.detach()) == pytest.approx(0.15 * expected, rel=1e-3)


def test_training_on_it_moves_the_modes_towards_the_target(train: Train) -> None:
    near_one = np.array([0.95, 0.96, 0.97, 0.98, 0.99, 1.0])
    policies_of = {
        target: train(
            Planted(near_one), TOKENS, f"koopman-shaping=20,every=1,share=1,target={target}", rate=3e-3
        )
        for target in ("0.1", "0.9")
    }
    after = {}
    for target, training in policies_of.items():
        for _ in range(60):
            training.advance()
        after[target] = float(training.policies[0].notes()[0].split()[-3])
    assert after["0.1"] < after["0.9"] - 0.2


def test_modes_outside_the_circle_are_pulled_in(train: Train) -> None:
    module = Planted(np.array([0.2, 0.3, 0.4, 0.5, 1.3, 1.6]))
    training = train(module, TOKENS, "koopman-shaping=1,every=1,share=1", rate=1e-2)
    for _ in range(60):
        training.advance()
    block = module.blocks[0]
    assert isinstance(block, Planted.Block)
    assert torch.linalg.eigvals(block.inner.weight.detach()).abs().max() < 1.3


def test_between_its_steps_and_after_its_end_the_run_is_as_was(start: Start) -> None:
    def losses(spelling: str | None) -> list[float]:
        training = start.training(Recipe(start.kinds[0]), make_policies(spelling) if spelling else ())
        taken = [float(training.advance().loss) for _ in range(6)]  # type: ignore[arg-type]
        training.end()
        assert not any(part._forward_hooks for part in training.module.modules())
        return taken

    was = losses(None)
    now = losses("koopman-shaping=0.15,every=100")
    assert now[0] == was[0]
    assert now[1:] != was[1:]
    assert losses(None) == was


def test_a_stream_that_is_no_longer_finite_is_left_out_and_counted(train: Train) -> None:
    module = Planted(FIRST)
    with torch.no_grad():
        module.embed.weight[3] = float("nan")
    training = train(module, TOKENS, "koopman-shaping=0.15,every=1")
    training.advance()
    assert "1 fits left out" in training.policies[0].notes()[0]


def test_too_few_tokens_are_refused_with_the_rank_that_they_carry(train: Train) -> None:
    training = train(Planted(FIRST), TOKENS[:1, :9], "koopman-shaping=0.15")
    with pytest.raises(UsageError, match="9 tokens at once are too few for 6 modes; choose at most rank=2"):
        training.advance()
    train(Planted(FIRST), TOKENS[:1, :9], "koopman-shaping=0.15,rank=2").advance()


def test_a_model_without_blocks_is_refused(train: Train) -> None:
    with pytest.raises(UsageError, match="no list of like blocks"):
        train(nn.Sequential(nn.Embedding(50, 6), nn.Linear(6, 50)), TOKENS, "koopman-shaping=0.15")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_hf_decoders_are_shaped_too(name: str, train: Train) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "llama": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
        "gpt_neox": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    }[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, vocab_size=50, **sizes)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    training = train(module, TOKENS, "koopman-shaping=0.15,every=1,share=1")
    training.advance()
    assert training.policies[0].notes()[0].startswith("near-unit mass")


@pytest.mark.parametrize(
    "value", ["", "0", "every=2", "0.1,0.2", "0.1,rank=0", "0.1,share=2", "0.1,target=2", "0.1,depth=3"]
)
def test_what_cannot_be_meant_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"write koopman-shaping=0\.15"):
        make_policies(f"koopman-shaping={value}")
