"""Train the two sample runs anew: `python -m sample_runs.make [--out DIR]`, a minute on one core.

The task is addition modulo 31 with a one-block decoder without norms, full batch, under Adam: small enough to
commit, and it lives at the edge of stability. Both runs start from the same weights, pre-trained for a few
hundred steps that are not recorded, and differ only in what `RUNS` says.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from hnf_offline.record import Recorder
from hnf_offline.run.model.gpt import GPT, GPTConfig

MODULUS = 31
SEED = 12
SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one sample run is trained, and which steps are recorded.

    Attributes:
        learning_rate: peak rate of Adam.
        beta2: decay of Adam's second moment.
        eps: Adam's epsilon.
        warm_up: steps over which the rate rises linearly.
        schedule: "constant" or "cosine" after the warm-up.
        steps: updates in all.
        first: first recorded checkpoint.
        last: last recorded checkpoint.
        every: gap between checkpoints.
    """

    learning_rate: float
    beta2: float
    eps: float
    warm_up: int
    schedule: str
    steps: int
    first: int
    last: int
    every: int


MODEL = GPTConfig(
    vocab_size=MODULUS + 1,
    block_size=3,
    n_layer=1,
    n_head=4,
    n_embd=28,
    mlp_width=28,
    norm="none",
    bias=False,
    tied=False,
)

#: What both runs start from.
PRETRAINING = Recipe(0.01, 0.99, 1e-8, 50, "constant", steps=300, first=0, last=0, every=1)

RUNS = {
    "spiky": Recipe(0.01, 0.99, 1e-8, 100, "constant", steps=1000, first=156, last=948, every=12),
    "steady": Recipe(0.002, 0.99, 1e-8, 100, "cosine", steps=1000, first=192, last=984, every=36),
}


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Give the training set: "a b =" and a + b modulo 31 for 60 % of all pairs.

    Returns:
        Tokens [576, 3] and targets [576].
    """
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    chosen = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
    chosen = chosen[: int(SHARE * len(pairs))]
    equals = torch.full((len(chosen), 1), MODULUS)
    return torch.cat([chosen, equals], dim=1), chosen.sum(dim=1) % MODULUS


def rate(recipe: Recipe, step: int) -> float:
    """Give the learning rate of a step, counted from 1.

    Returns:
        The rate: linear warm-up, then constant or cosine to 0 at the last step.
    """
    warm = min(1.0, step / recipe.warm_up)
    if recipe.schedule == "constant" or step <= recipe.warm_up:
        return recipe.learning_rate * warm
    progress = (step - recipe.warm_up) / (recipe.steps - recipe.warm_up)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(
    recipe: Recipe,
    each_step: Callable[[int, GPT, torch.optim.Optimizer, float, float, float], None] | None = None,
    model: GPT | None = None,
) -> GPT:
    """Train one run and call back after every step.

    Args:
        recipe: the run.
        each_step: called with step, model, optimizer, loss, gradient norm and the step's learning rate; the
            optimizer then holds the rate of the next step.
        model: the weights to start from, drawn from `SEED` if None.

    Returns:
        The trained model.
    """
    tokens, targets = data()
    if model is None:
        model = GPT(MODEL).initialise(torch.Generator().manual_seed(SEED))
    optimizer = torch.optim.Adam(
        model.parameters(), lr=rate(recipe, 1), betas=(0.9, recipe.beta2), eps=recipe.eps
    )
    for step in range(1, recipe.steps + 1):
        loss = functional.cross_entropy(model(tokens)[:, -1], targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(
            torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        )
        used = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate(recipe, step + 1)
        if each_step is not None:
            each_step(step, model, optimizer, float(loss.detach()), norm, used)
    return model


def make(name: str, directory: Path) -> None:
    """Train one sample run into a new directory."""
    recipe = RUNS[name]
    tokens, targets = data()
    optimizer = {
        "kind": "Adam",
        "learning_rate": recipe.learning_rate,
        "beta1": 0.9,
        "beta2": recipe.beta2,
        "eps": recipe.eps,
        "schedule": recipe.schedule,
        "warm_up": recipe.warm_up,
    }
    training = {
        "task": f"addition modulo {MODULUS}",
        "batch": "full",
        "seed": SEED,
        "steps": recipe.steps,
    }

    def due(step: int) -> bool:
        return recipe.first <= step <= recipe.last and (step - recipe.first) % recipe.every == 0

    with Recorder(
        directory,
        every=due,
        model={"model_type": "gpt", **asdict(MODEL)},
        optimizer=optimizer,
        training=training,
    ) as recorder:
        recorder.save_batches(tokens, targets)
        train(
            recipe,
            lambda step, model, adam, loss, norm, used: recorder.record(
                step, model, adam, loss=loss, grad_norm=norm, learning_rate=used
            ),
            model=train(PRETRAINING),
        )


def main() -> None:
    """Make the runs named on the command line, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(RUNS), help="spiky, steady")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the runs' folders go")
    options = parser.parse_args()
    # One thread: sums are then taken in one order, and a seed gives the same run on every such machine.
    torch.set_num_threads(1)
    for name in options.names:
        make(name, options.out / name)
        print(f"{options.out / name}")


if __name__ == "__main__":
    main()
