"""How products are made, found out on the first checkpoint and kept beside the shards.

So a profile that was interrupted, or is spread over several processes, gives the same table as one that was not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hnf_offline.errors import UserError
from hnf_offline.profile.derivatives import settle
from hnf_offline.profile.exhaustion import halving
from hnf_offline.profile.measure import subject_of
from hnf_offline.profile.memory import MemoryPlan
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import Session, memory_now, optimizer_of
from hnf_offline.profile.settings import TIERS, ProfileSettings
from hnf_offline.profile.shards import settings_key
from hnf_offline.profile.suffix.blocks import CallOrder
from hnf_offline.profile.suffix.calibration import Calibration, Differences
from hnf_offline.run.formats import load_optimizer, load_weights
from hnf_offline.run.model.build import load_weights_into
from hnf_offline.run.optimizer import OptimizerState
from hnf_offline.run.records import Checkpoint, Run

_FILE = "products.json"


def settle_products(run: Run, session: Session, settings: ProfileSettings, folder: Path) -> None:
    """Calibrate the layers' products on one checkpoint, or take what an earlier run found.

    The checkpoint is the first that can be read, of those with optimizer state where any has some.

    Nothing happens in tiers that multiply no layer's Hessian.

    Args:
        run: the run.
        session: its module is left with that checkpoint's weights.
        settings: what is measured.
        folder: where the shards are.
    """
    if TIERS.index(settings.tier) < TIERS.index("curvature") or session.products.calibration is not None:
        return
    key = settings_key(settings, session.identity)
    known = _read(folder / _FILE, key)
    if known is not None:
        session.products.calibration = known
        return
    points = selected(run, settings)
    # Sorting is stable: the first of those with optimizer state, whose step metric the products are held against.
    for checkpoint in sorted(points, key=lambda point: not point.optimizer_files):
        try:
            load_weights_into(session.module, load_weights(checkpoint))
            state, _ = optimizer_of(session, run, checkpoint, load_optimizer(checkpoint))
        except UserError:
            continue
        if all(bool(torch.isfinite(value).all()) for value in session.module.parameters()):
            _write(folder / _FILE, key, _settled(session, settings, checkpoint, state))
            return


def _settled(
    session: Session, settings: ProfileSettings, checkpoint: Checkpoint, state: OptimizerState | None
) -> Calibration:
    def work(memory: MemoryPlan) -> Calibration:
        return settle(subject_of(session, checkpoint.step, state, memory), settings)

    calibration, _ = halving(work, memory_now(session), checkpoint.path)
    return calibration


def _read(path: Path, key: str) -> Calibration | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] != key:
            return None
        order = kept["order"]
        return Calibration(
            CallOrder(
                tuple(order["blocks"]),
                order["first_use"],
                order["inside"],
                tuple(tuple(axes) for axes in order["row_axes"]),
                order["couples_rows"],
            ),
            _differences(kept["raw"]),
            _differences(kept["scaled"]),
            kept["reason"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, cut off, or written by another version: found out again


def _differences(kept: Mapping[str, Any]) -> Differences:
    errors = {path: math.nan if error is None else error for path, error in kept["errors"].items()}
    return Differences(kept["steps"], errors, frozenset(kept["exact"]))


def _write(path: Path, key: str, calibration: Calibration) -> None:
    kept: dict[str, Any] = asdict(calibration) | {"key": key}
    for name, found in (("raw", calibration.raw), ("scaled", calibration.scaled)):
        errors = {path: None if math.isnan(error) else error for path, error in found.errors.items()}
        kept[name] |= {"exact": sorted(found.exact), "errors": errors}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        # The shards will say what is wrong with the folder; the calibration alone can be found out again.
        with suppress(OSError):
            temporary.unlink()
