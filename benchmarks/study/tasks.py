"""The rows of the study's tasks: all of them drawn from a seed, nothing is read from elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.study.case import Addition, Case, Recall, Text

#: Rows of text that are replayed; addition replays all pairs it is trained on.
REPLAYED = 16
#: Rows of associative recall that are replayed: ten tokens for each direction of the stream.
RECALLED = 64
#: Power that makes the transition probabilities sparse: three or four next symbols hold most of the mass.
SPARSENESS = 10.0
#: Share of the next symbol's distribution that the last symbol alone decides, as bigrams are learned first.
OF_THE_LAST = 0.7


def pairs(task: Addition, seed: int) -> tuple[Tensor, Tensor]:
    """Give all pairs that are trained on.

    Returns:
        Tokens "a b =" [pairs, 3] and sums [pairs].
    """
    residues = torch.arange(task.modulus)
    every = torch.cartesian_prod(residues, residues)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    chosen = every[order[: round(task.share * len(every))]]
    equals = torch.full((len(chosen), 1), task.modulus)
    return torch.cat([chosen, equals], dim=1), chosen.sum(dim=1) % task.modulus


def transitions(task: Text) -> Tensor:
    """Give the chain that all runs of a task learn: mostly the last symbol decides, in part the last two.

    Returns:
        Probabilities of the next symbol after two, [vocabulary, vocabulary, vocabulary].
    """
    generator = torch.Generator().manual_seed(0)
    after_one = _distributions((task.vocabulary, task.vocabulary), generator)
    after_two = _distributions((task.vocabulary,) * 3, generator)
    return OF_THE_LAST * after_one + (1 - OF_THE_LAST) * after_two


def _distributions(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw sparse distributions over the last axis: powers of uniform numbers, normalised.

    Returns:
        Probabilities.
    """
    weights = torch.rand(shape, generator=generator, dtype=torch.float64).clamp_min(1e-12).pow(SPARSENESS)
    return weights / weights.sum(dim=-1, keepdim=True)


def text(task: Text, rows: int, generator: torch.Generator, chain: Tensor) -> Tensor:
    """Draw rows of text.

    Returns:
        Symbols, [rows, length].
    """
    drawn = torch.randint(task.vocabulary, (rows, task.length), generator=generator)
    for place in range(2, task.length):
        following = chain[drawn[:, place - 2], drawn[:, place - 1]]
        drawn[:, place] = torch.multinomial(following, 1, generator=generator)[:, 0]
    return drawn


def recalled(task: Recall, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw rows of pairs and what is asked for.

    Returns:
        Tokens "k v k v ... k" [rows, 2 pairs + 1], keys below values, all keys of a row different; and the value
        that belongs to the last one, [rows].
    """
    keys = torch.rand(rows, task.keys, generator=generator).argsort(dim=1)[:, : task.pairs]
    values = task.keys + torch.randint(task.keys, keys.shape, generator=generator)
    asked = torch.randint(task.pairs, (rows, 1), generator=generator)
    tokens = torch.cat([torch.stack([keys, values], dim=2).flatten(1), keys.gather(1, asked)], dim=1)
    return tokens, values.gather(1, asked)[:, 0]


def source(case: Case) -> tuple[Callable[[int], tuple[Tensor, Tensor]], tuple[Tensor, Tensor | None]]:
    """Open the data of a run.

    Returns:
        A function from the step to its tokens and labels, to be called in order; and the rows to replay.
    """
    task, generator = case.task, torch.Generator().manual_seed(1000 + case.seed)
    if isinstance(task, Addition):
        tokens, sums = pairs(task, case.seed)

        def some(_: int) -> tuple[Tensor, Tensor]:
            if case.batch is None or case.batch >= len(tokens):
                return tokens, sums
            rows = torch.randperm(len(tokens), generator=generator)[: case.batch]
            return tokens[rows], sums[rows]

        return some, (tokens, sums)
    if isinstance(task, Recall):
        asked = recalled(task, RECALLED, torch.Generator().manual_seed(2000 + case.seed))
        return lambda _: recalled(task, case.batch or RECALLED, generator), asked
    chain = transitions(task)
    replayed = text(task, REPLAYED, torch.Generator().manual_seed(2000 + case.seed), chain)

    def new(step: int) -> tuple[Tensor, Tensor]:
        rows = text(task, case.batch or REPLAYED, generator, chain)
        if step in case.bad_text:
            rows = torch.randint(task.vocabulary, rows.shape, generator=generator)
        labels = rows
        if step in case.bad_labels:
            labels = torch.randint(task.vocabulary, rows.shape, generator=generator)
        return rows, labels

    return new, (replayed, None)
