"""What a profile would cost, without computing it."""

from __future__ import annotations

from pathlib import Path

from hnf_offline.profile.cost import forward_passes, measured_layers, range_of, timed
from hnf_offline.profile.devices import choose_devices
from hnf_offline.profile.run import shard_keys
from hnf_offline.profile.selection import selected
from hnf_offline.profile.session import check_settings, open_session
from hnf_offline.profile.settings import Plan, ProfileSettings
from hnf_offline.profile.shards import read_shard, settings_key, shard_path
from hnf_offline.run.model.positions import positions
from hnf_offline.run.records import Run


def plan(run: Run, settings: ProfileSettings, out: Path, *, model_factory: str | None = None) -> Plan:
    """Say what a profile would cost; nothing is profiled and nothing written.

    Forward passes are counted (see `cost`), seconds are those of one timed forward pass times their number; the range
    is that in which they lay where they were measured.

    Returns:
        The plan.
    """
    check_settings(settings)
    checkpoints = selected(run, settings)
    missing = tuple(f"{item.what}: {item.cost}" for item in run.missing)
    session = open_session(run, settings, model_factory) if checkpoints else None
    key = settings_key(settings, () if session is None else session.identity)
    folder = out / "profile"
    cached = sum(
        read_shard(shard_path(folder, point), own_key) is not None
        for point, own_key in zip(checkpoints, shard_keys(run, session, key, checkpoints), strict=True)
    )
    if session is None:
        device = ", ".join(map(str, choose_devices(settings.device)))
        return Plan(len(checkpoints), cached, "weights", 0, 0, 0, 0, 0.0, 0, device, missing)
    with_state = any(point.optimizer_files for point in checkpoints)
    forwards = forward_passes(session, settings, with_state=with_state)
    one = timed(session)
    low, high = range_of(forwards, one)
    return Plan(
        checkpoints=len(checkpoints),
        cached=cached,
        tier=settings.tier,
        layers=measured_layers(session, settings),
        parameters=sum(layer.size for layer in session.layers),
        rows=len(session.batch.tokens),
        tokens=positions(session.batch.tokens, session.module),
        forwards=forwards,
        peak_bytes=session.memory.peak_bytes,
        device=", ".join(map(str, choose_devices(settings.device))),
        missing=missing,
        seconds=forwards * one.seconds,
        seconds_low=low,
        seconds_high=high,
        array=session.source.tokens if session.source.shape else "",
    )
