"""E: 6 to 48 blocks, with and without norms: the failure-prediction experiment of the condition-number profiler."""

from __future__ import annotations

from benchmarks.study.case import Addition, Case, Family, Update
from hnf_offline.run.model.gpt import GPTConfig

TASK = Addition(11, 1.0)
#: Blocks, updates, learning rate. Deeper stacks fail sooner, and every step of theirs costs more.
STACKS = ((6, 500, 1e-2), (6, 500, 2e-2), (12, 350, 1e-2), (24, 200, 1e-2), (48, 130, 1e-2))


def cases(seed: int) -> tuple[Case, ...]:
    """Four depths at 1e-2, the shallowest at 2e-2 too; norms before the sublayers for the first rate.

    Returns:
        Nine runs.
    """
    return tuple(
        Case(
            "E",
            f"L{blocks}-{norm}-lr{rate:g}",
            seed,
            GPTConfig(12, 3, blocks, 4, 16, norm=norm, bias=False, tied=False),
            TASK,
            Update("Adam", rate),
            steps=steps,
            first=50,
        )
        for blocks, steps, rate in STACKS
        for norm in ("none", "pre")
        if norm == "none" or rate == 1e-2
    )


FAMILY = Family(
    "E",
    "depth: 6, 12, 24 and 48 blocks",
    "without norms most depths fail, with norms before the sublayers none; S warns early while the loss is flat, so a "
    "window of 80 steps counts misses; RMS_t and the gradient norm do better",
    (0, 1, 2, 3),
    cases,
)
