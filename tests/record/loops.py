"""A small model with dropout and a training loop that spikes when told to, for the black box's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnf_offline.record import FlightRecorder

WORDS, ROWS, LENGTH = 11, 4, 6


class Small(nn.Module):
    """Embedding, dropout, two layers: predicts the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.drop = nn.Dropout(0.2)
        self.body = nn.Linear(8, 16)
        self.head = nn.Linear(16, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.drop(self.embed(input_ids)))))


def make(seed: int = 0) -> tuple[Small, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = Small()
    return module, torch.optim.AdamW(module.parameters(), lr=0.005, betas=(0.9, 0.95))


def draw(step: int) -> Tensor:
    """The batch of a step; drawing it uses the global generator, as loaders do."""
    start = torch.randint(0, WORDS, (ROWS, 1))
    return (start + torch.arange(LENGTH) * (1 + step % 2)) % WORDS


def rate_of(step: int, spike_at: int | None) -> float:
    return 1.0 if spike_at is not None and spike_at <= step < spike_at + 2 else 0.005


def update(module: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> tuple[Tensor, Tensor]:
    loss = functional.cross_entropy(module(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return loss, norm


def train(
    steps: int,
    directory: Path | None,
    *,
    spike_at: int | None = None,
    on_step: Callable[[FlightRecorder, int], Any] | None = None,
    **options: Any,
) -> tuple[list[float], Small, torch.optim.Optimizer, FlightRecorder | None]:
    """Train, with a black box where there is a directory; a too large rate for two steps makes a spike."""
    module, optimizer = make()
    box = None if directory is None else FlightRecorder(directory, module, optimizer, **options)
    losses = []
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = rate_of(step, spike_at)
        tokens = draw(step)
        if box is None:
            loss, norm = update(module, optimizer, tokens)
        else:
            with box.step(tokens) as taken:
                loss, norm = update(module, optimizer, tokens)
                # A scheduler that already moved on must not shift the recorded rate.
                optimizer.param_groups[0]["lr"] = rate_of(step + 1, spike_at)
                taken.done(loss=loss, grad_norm=norm)
            if on_step is not None:
                on_step(box, step)
        losses.append(float(loss.detach()))
    if box is not None:
        box.close()
    return losses, module, optimizer, box
