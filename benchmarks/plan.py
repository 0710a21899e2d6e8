"""What a plan predicts against what a profile takes: `python -m benchmarks.plan [--accuracy standard]`.

Three models are trained for some steps on rows that can be learned, then planned and profiled: the built-in decoder
and torch's encoder with optimizer state, a GPT-2 without. Each line holds the prediction and what was counted or
measured. Below it, the products that each spectrum took on average, as `hnf_offline.profile.cost.PRODUCTS` holds
them. Forward passes and products are the same in every run on one machine; seconds and memory are not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.linalg.stopping import ACCURACIES
from hnf_offline.profile import plan
from hnf_offline.profile.effort import counted
from hnf_offline.profile.run import profile_run
from hnf_offline.profile.session import open_session
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.record import Recorder
from hnf_offline.run import open_run
from hnf_offline.run.model.build import build_model
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.records import ModelSource

VOCABULARY, LENGTH = 17, 12
GPT2: dict[str, Any] = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2,
    "n_head": 4, "n_positions": LENGTH, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
BUILT_IN: dict[str, Any] = {
    "vocab_size": VOCABULARY, "block_size": LENGTH, "n_layer": 3, "n_head": 4, "n_embd": 16, "norm": "pre",
}  # fmt: skip


class Encoder(nn.Module):
    """torch's encoder with a class for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give logits.

        Returns:
            [rows, length, vocabulary].
        """
        return self.head(self.encoder(self.embed(input_ids)))  # type: ignore[no-any-return]


def encoder(config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the encoder, as a user's factory would.

    Returns:
        The module.
    """
    torch.manual_seed(1)
    return Encoder()


@dataclass(frozen=True, slots=True)
class Case:
    """A model to plan for.

    Attributes:
        name: of the line.
        build: the model, initialised.
        config: what the run says of it, None where it comes from a factory.
        with_state: whether the optimizer's state is kept.
        factory: `package.module:function`, None for the run's own model.
    """

    name: str
    build: Callable[[], nn.Module]
    config: Mapping[str, Any] | None
    with_state: bool
    factory: str | None = None


def _gpt2() -> nn.Module:
    torch.manual_seed(1)
    return build_model(ModelSource("hf", GPT2), device=torch.device("cpu"), dtype=torch.float32)


CASES: Sequence[Case] = (
    Case(
        "built-in decoder",
        lambda: GPT(GPTConfig(**BUILT_IN)).initialise(torch.Generator().manual_seed(1)),
        {"model_type": "gpt", **BUILT_IN},
        True,
    ),
    Case("GPT-2 without state", _gpt2, GPT2, False),
    Case("torch encoder", encoder, None, True, "benchmarks.plan:encoder"),
)


def train(case: Case, folder: Path, *, steps: int = 60, rows: int = 8) -> Path:
    """Train a model and record it, with checkpoints in the middle and at the end.

    Returns:
        The run's folder.
    """
    module = case.build()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, VOCABULARY, (steps, rows, 1), generator=generator)
    tokens = (3 * first + 5 * torch.arange(LENGTH)) % VOCABULARY
    labels = (tokens + tokens.roll(1, dims=-1)) % VOCABULARY if case.factory else None
    with Recorder(folder, every=steps // 2, model=case.config) as recorder:
        recorder.save_batches(tokens.flatten(0, 1), None if labels is None else labels.flatten(0, 1))
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = evaluate(module, tokens[step - 1], None if labels is None else labels[step - 1]).loss
            loss.backward()
            optimizer.step()
            recorder.record(step, module, optimizer, loss=loss.detach())
    if not case.with_state:
        (folder / "log.jsonl").unlink()
        for file in folder.glob("checkpoints/*/optimizer.safetensors"):
            file.unlink()
    return folder


@dataclass(frozen=True, slots=True)
class Held:
    """A plan, and what it is held against: (predicted, measured), a checkpoint.

    Attributes:
        forwards: forward passes, counted.
        seconds: seconds, measured.
        peak: bytes, measured; a process grows by what libraries load, so of small models this says little.
        whole: products with the whole Hessian, directions included.
        layer: exact products a layer.
        difference: differences a layer.
    """

    forwards: tuple[float, float]
    seconds: tuple[float, float]
    peak: tuple[int, int]
    whole: float
    layer: float
    difference: float


def held(case: Case, run_path: Path, out: Path, settings: ProfileSettings) -> Held:
    """Plan a run and profile it.

    Returns:
        Predictions beside what was counted.
    """
    run = open_run(run_path)
    predicted = plan(run, settings, out, model_factory=case.factory)
    began = time.perf_counter()
    with counted() as effort:
        measured = profile_run(run, settings, out, model_factory=case.factory)
    seconds = (time.perf_counter() - began) / max(1, measured.computed)
    units = predicted.rows * max(1, measured.computed)
    session = open_session(run, settings, case.factory)
    assert session is not None
    # With several training batches, layers are replayed on the first one.
    of_layers = units * predicted.layers / len(session.training_batches)
    return Held(
        (predicted.forwards, measured.forwards),
        (predicted.seconds, seconds),
        (predicted.peak_bytes, measured.peak_bytes),
        effort.units["whole product"] / units,
        effort.units["layer product"] / of_layers,
        effort.units["layer difference"] / of_layers,
    )


def _line(name: str, accuracy: str, found: Held) -> str:
    (plan_forwards, forwards), (plan_seconds, seconds), (plan_peak, peak) = (
        found.forwards, found.seconds, found.peak
    )  # fmt: skip
    return (
        f"{name:20} {accuracy:9} forwards {plan_forwards:6.0f} {forwards:6.0f} ({plan_forwards / forwards:4.2f})"
        f"  seconds {plan_seconds:6.2f} {seconds:6.2f}  MiB {plan_peak / 2**20:6.1f} {peak / 2**20:6.1f}"
        f"  products: whole {found.whole:4.1f}, layer {found.layer:4.1f} + {found.difference:4.1f} differences"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accuracy", nargs="*", default=list(ACCURACIES), choices=list(ACCURACIES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("predicted, then counted or measured, a checkpoint")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            run_path = train(case, Path(folder) / case.name)
            for accuracy in asked.accuracy:
                settings = ProfileSettings(accuracy=accuracy)
                out = Path(folder) / f"{case.name} {accuracy}"
                print(_line(case.name, accuracy, held(case, run_path, out, settings)), flush=True)


if __name__ == "__main__":
    main()
