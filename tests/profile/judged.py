"""The tiny models on which the curvature engine is judged: fresh and trained, with the optimizer's own state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hnf_offline.profile.batch import ReplayBatch
from hnf_offline.profile.settings import ProfileSettings
from hnf_offline.profile.subject import Subject
from hnf_offline.run.model.build import build_model
from hnf_offline.run.model.gpt import GPT, GPTConfig
from hnf_offline.run.model.layers import layers_of
from hnf_offline.run.model.loss import evaluate
from hnf_offline.run.optimizer import OptimizerState, ParameterState
from hnf_offline.run.records import ModelSource
from tests.profile.dense import Dense, dense_hessian

VOCABULARY, LENGTH, ROWS = 13, 8, 6
CPU = torch.device("cpu")
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"], "vocab_size": VOCABULARY, "n_embd": 8, "n_inner": 16, "n_layer": 2,
    "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ALBERT: dict[str, Any] = {
    "architectures": ["AlbertForMaskedLM"], "vocab_size": VOCABULARY, "embedding_size": 8, "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 16,
    "type_vocab_size": 1, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


VIT: dict[str, Any] = {
    "architectures": ["ViTForImageClassification"], "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_channels": 2, "num_labels": 5,
}  # fmt: skip


class Encoder(nn.Module):
    """An encoder as torch makes it, as a user's factory would give it: it marks each position's class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.position = nn.Parameter(torch.zeros(LENGTH, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Give logits, [rows, length, vocabulary]."""
        return self.head(self.encoder(self.embed(input_ids) + self.position))  # type: ignore[no-any-return]


def built_in(norm: str) -> nn.Module:
    """The built-in decoder of 1,200 parameters."""
    config = GPTConfig(
        VOCABULARY, LENGTH, 2, 2, 8, mlp_width=16, norm=norm, tied=norm == "pre", initial_std=0.25
    )
    return GPT(config).initialise(torch.Generator().manual_seed(1)).eval()


def hugging_face(config: dict[str, Any]) -> nn.Module:
    """A tiny transformers model, its initial weights ten times the usual ones: they would be all but linear."""
    model_type = {"Llama": "llama", "GPT2L": "gpt2", "Alber": "albert", "ViTFo": "vit"}[
        config["architectures"][0][:5]
    ]
    torch.manual_seed(1)
    config = {"initializer_range": 0.2, "model_type": model_type, **config}
    return build_model(ModelSource("hf", config), device=CPU, dtype=torch.float32)


def encoder() -> nn.Module:
    """torch's own encoder."""
    torch.manual_seed(1)
    return Encoder().eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT without norms": lambda: built_in("none"),
    "GPT pre-norm, tied": lambda: built_in("pre"),
    "GPT post-norm": lambda: built_in("post"),
    "Llama, grouped queries, tied": lambda: hugging_face(LLAMA),
    "GPT-2, fused projections": lambda: hugging_face(GPT2),
    "torch encoder": encoder,
    "ALBERT, shared weights": lambda: hugging_face(ALBERT),
    "ViT, images": lambda: hugging_face(VIT),
}
NEEDS_TRANSFORMERS = (
    "Llama, grouped queries, tied",
    "GPT-2, fused projections",
    "ALBERT, shared weights",
    "ViT, images",
)
#: Updates before the measurement; after 2 the model is all but random, after 60 it knows the rows.
STEPS = {"fresh": 2, "trained": 60}


@dataclass(frozen=True)
class Case:
    """A model at a checkpoint, and its dense Hessian."""

    name: str
    subject: Subject
    dense: Dense


def structured_rows(rows: int, seed: int, *, vocabulary: int = VOCABULARY, length: int = LENGTH) -> Tensor:
    """Rows that can be learned: each token is 3 times the one before plus a number of the row, one in ten at random."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(0, 4, (rows,), generator=generator)
    token = torch.randint(0, vocabulary, (rows,), generator=generator)
    columns = []
    for _ in range(length):
        columns.append(token)
        noise = torch.rand(rows, generator=generator) < 0.1
        drawn = torch.randint(0, vocabulary, (rows,), generator=generator)
        token = torch.where(noise, drawn, (3 * token + shift) % vocabulary)
    return torch.stack(columns, dim=1)


def structured_images(rows: int, seed: int) -> Tensor:
    """Images that can be told apart: one of five patterns of 2 x 8 x 8 pixels, and as much noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    chosen = torch.randint(0, 5, (rows,), generator=generator)
    return patterns[chosen] + torch.randn(rows, 2, 8, 8, generator=generator)


def rows_of(name: str, rows: int, seed: int) -> Tensor:
    """What a model is trained and measured on."""
    return structured_images(rows, seed) if "images" in name else structured_rows(rows, seed)


def labels_of(name: str, tokens: Tensor) -> Tensor | None:
    """What is to be predicted: the next token; for the encoders the sum of two neighbours; of an image its pattern."""
    if "images" in name:
        patterns = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        return torch.cdist(tokens.flatten(1), patterns.flatten(1)).argmin(dim=1)
    if "encoder" in name or "ALBERT" in name:
        return (tokens + tokens.roll(-1, dims=1)) % VOCABULARY
    return None


def train(module: nn.Module, optimizer: torch.optim.Optimizer, name: str, first: int, last: int) -> None:
    """Make the updates first + 1 to last, each on rows of its own."""
    for step in range(first, last):
        tokens = rows_of(name, 4 * ROWS, 100 + step)
        optimizer.zero_grad()
        evaluate(module, tokens, labels_of(name, tokens)).loss.backward()
        optimizer.step()


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> OptimizerState:
    """The state that torch's AdamW holds, as a checkpoint would give it."""
    group = optimizer.param_groups[0]
    return OptimizerState(
        "adamw",
        {
            name: ParameterState(
                learning_rate=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                step=int(optimizer.state[value]["step"]),
                exp_avg=optimizer.state[value]["exp_avg"].clone(),
                exp_avg_sq=optimizer.state[value]["exp_avg_sq"].clone(),
            )
            for name, value in module.named_parameters()
            if value in optimizer.state
        },
    )


def subject_of(
    module: nn.Module, tokens: Tensor, labels: Tensor | None, state: OptimizerState | None, step: int
) -> Subject:
    """All rows as one batch."""
    batch = ReplayBatch.of(tokens, labels, "replay")
    half = -(-len(tokens) // 2)
    return Subject(
        step, module, layers_of(module), state, batch.cut(half, CPU), batch.cut(len(tokens), CPU), "replay"
    )


@cache
def case(name: str, age: str) -> Case:
    """A model at an age of `STEPS`, built and differentiated once a session."""
    module = MODELS[name]()
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3, betas=(0.9, 0.95))
    train(module, optimizer, name, 0, STEPS[age])
    module.zero_grad(set_to_none=True)
    tokens = rows_of(name, ROWS, 7)
    labels, state = labels_of(name, tokens), state_of(module, optimizer)
    subject = subject_of(module, tokens, labels, state, STEPS[age])
    return Case(f"{name}, {age}", subject, dense_hessian(module, subject.layers, tokens, labels, state))


def settings(accuracy: str, **others: Any) -> ProfileSettings:
    """Settings of the curvature tier at an accuracy."""
    return ProfileSettings(tier="curvature", accuracy=accuracy, **others)
