"""What one run of the study is: declared in full, so that its name and its seed give the same run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hnf_offline.run.model.gpt import GPTConfig

#: Seeds from here on are drawn once, for the final tables; below, even seeds tune and odd seeds test.
FRESH = 100


@dataclass(frozen=True, slots=True)
class Addition:
    """Learn a + b modulo a prime from a share of all pairs.

    Attributes:
        modulus: the prime.
        share: share of the pairs that is trained on.
    """

    modulus: int
    share: float


@dataclass(frozen=True, slots=True)
class Text:
    """Predict the next symbol of text drawn from a Markov chain of second order, new rows at every step.

    Attributes:
        vocabulary: symbols.
        length: symbols a row.
    """

    vocabulary: int
    length: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Associative recall: pairs of a key and a value, then one of the keys, whose value is asked for.

    Attributes:
        pairs: pairs a row.
        keys: different keys; as many different values.
    """

    pairs: int
    keys: int


@dataclass(frozen=True, slots=True)
class Update:
    """How weights are updated.

    Attributes:
        kind: "Adam" or "SGD".
        learning_rate: rate after the warm-up.
        momentum: Adam's beta1, or heavy-ball momentum.
        beta2: Adam's second decay; of no meaning for SGD.
        warm_up: steps over which the rate rises linearly.
        raised_at: step from which the rate is `raised_by` times as high, 0 for never.
        raised_by: the factor.
    """

    kind: str
    learning_rate: float
    momentum: float = 0.9
    beta2: float = 0.99
    warm_up: int = 50
    raised_at: int = 0
    raised_by: float = 1.0

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, counted from 1.

        Returns:
            The rate.
        """
        raised = self.raised_by if self.raised_at and step >= self.raised_at else 1.0
        return self.learning_rate * raised * min(1.0, step / self.warm_up)


#: What a run can learn.
TASKS: tuple[type[Addition | Text | Recall], ...] = (Addition, Text, Recall)


@dataclass(frozen=True, slots=True)
class Case:
    """One run.

    Attributes:
        family: letter of its family.
        setting: what tells it from the other settings of its family; part of its name.
        seed: of weights, data order and faults.
        model: shape of the decoder.
        task: what it learns.
        update: how.
        steps: updates; fewer where the loss stops being finite.
        batch: rows a step, None for all.
        first: first checkpoint.
        every: gap between checkpoints.
        bad_labels: steps whose labels are drawn at random.
        bad_text: steps whose symbols are drawn at random.
    """

    family: str
    setting: str
    seed: int
    model: GPTConfig
    task: Addition | Text | Recall
    update: Update
    steps: int
    batch: int | None = None
    first: int = 100
    every: int = 8
    bad_labels: tuple[int, ...] = field(default=())
    bad_text: tuple[int, ...] = field(default=())

    @classmethod
    def declared(cls, written: dict[str, Any]) -> Case:
        """Read a case back from its fields, as JSON holds them.

        Returns:
            The case.
        """
        task = written["task"]
        return cls(**{
            **written,
            "model": GPTConfig(**written["model"]),
            "task": next(kind(**task) for kind in TASKS if set(task) == {one.name for one in fields(kind)}),
            "update": Update(**written["update"]),
            "bad_labels": tuple(written["bad_labels"]),
            "bad_text": tuple(written["bad_text"]),
        })

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.family}-{self.setting}-seed{self.seed}"

    @property
    def folder(self) -> str:
        """Name under which it is kept: a case that is declared otherwise is another run."""
        declared = json.dumps(asdict(self), sort_keys=True)
        return f"{self.name}-{hashlib.sha256(declared.encode()).hexdigest()[:8]}"

    @property
    def split(self) -> str:
        """Whether it tunes, tests or is fresh: by the seed alone, fixed before anything was looked at."""
        if self.seed >= FRESH:
            return "fresh"
        return "tune" if self.seed % 2 == 0 else "test"


@dataclass(frozen=True, slots=True)
class Family:
    """Runs of one kind.

    Attributes:
        letter: A, B, ...
        title: in a few words.
        expected: what the pilot lets one expect, written down before the runs were made.
        seeds: seeds of the even and the odd half; as many fresh ones are drawn.
        cases: gives the family's runs of one seed.
    """

    letter: str
    title: str
    expected: str
    seeds: tuple[int, ...]
    cases: Callable[[int], tuple[Case, ...]]

    def fresh(self) -> tuple[int, ...]:
        """Give the seeds of the final tables.

        Returns:
            As many as there are others.
        """
        return tuple(FRESH + seed for seed in self.seeds)
