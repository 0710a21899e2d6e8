"""The families of runs, one file each."""

from __future__ import annotations

from benchmarks.study.case import Family
from benchmarks.study.families import (
    bad_batch,
    climb,
    depth,
    hover,
    jump,
    language_model,
    minibatch,
    momentum,
    without_spikes,
)

FAMILIES: dict[str, Family] = {
    module.FAMILY.letter: module.FAMILY
    for module in (
        climb,
        hover,
        without_spikes,
        momentum,
        depth,
        jump,
        bad_batch,
        minibatch,
        language_model,
    )
}
