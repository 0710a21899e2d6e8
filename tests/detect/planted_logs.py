"""Logs as trainers leave them, noisy and autocorrelated, with something planted or nearly so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from hnf_offline.detect.pathologies import pathologies
from hnf_offline.detect.spikes import find_spikes
from hnf_offline.findings import Pathology
from hnf_offline.relate.log_alone import how_written
from hnf_offline.run.logs import read_log
from hnf_offline.synthetic import ar1

ROWS = 1000
PLACE = np.arange(ROWS)
Floats = np.ndarray


def noise(seed: int, size: float, phi: float = 0.5) -> Floats:
    """Factors whose logarithm is autocorrelated."""
    return np.exp(size * ar1(ROWS, phi, seed))


def falling(seed: int, size: float = 0.03) -> Floats:
    """A loss from 4 to 1.5."""
    return (1.5 + 2.5 * np.exp(-PLACE / 250)) * noise(seed, size)


def log_of(loss: Floats, **columns: Floats) -> pl.DataFrame:
    """Put columns together as a log of steps 1 to 1000."""
    return pl.DataFrame({"step": PLACE + 1, "loss": loss} | columns)


def found(log: pl.DataFrame) -> tuple[Pathology, ...]:
    """Find what a report would, spikes too, which are told apart from pathologies, as kind "loss-spike"."""
    spikes = find_spikes(log)
    told = [
        Pathology(
            "loss-spike",
            "",
            one.onset,
            f"loss {one.loss_before:.3g} to {one.loss_peak:.3g}.",
            "See its story.",
        )
        for one in spikes
    ]
    return (*told, *pathologies(pl.DataFrame(), log, spikes))


def found_in_file(path: Path, steps: Floats, loss: Floats) -> tuple[Pathology, ...]:
    """Write rows as they came, read them as the program does, and find what is wrong with them."""
    lines = [
        json.dumps({"step": int(at), "loss": float(value)}) for at, value in zip(steps, loss, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    log = read_log(path)
    return pathologies(pl.DataFrame(), log.rows, find_spikes(log.rows), how_written(log))
