"""How devices are spelled (auto, cpu, mps, cuda, cuda:1, several with commas), and which of them are here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hnf_offline.errors import UsageError

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"cpu|mps|cuda(:\d{1,3})?")
SPELLING = "auto|cpu|mps|cuda|cuda:N|A,B,..."


def device_names(spelled: str) -> tuple[str, ...]:
    """Take a spelling apart, without asking which devices are here. Torch-free.

    Args:
        spelled: "auto", "cpu", "cuda" (every visible GPU), "cuda:1", or several with commas: "cuda:0,cuda:1".

    Returns:
        The names; one that comes twice gets two processes.

    Raises:
        UsageError: if one of them names no device.
    """
    names = tuple(name.strip() for name in spelled.split(","))
    wrong = [name for name in names if not _NAME.fullmatch(name)]
    if wrong and names != ("auto",):
        raise UsageError(
            f"--device {spelled}: {wrong[0] or 'nothing'} is no device",
            remedy="use auto, cpu, mps, cuda or cuda:1; several with commas, for a process each: cuda:0,cuda:1",
        )
    return names


def choose_devices(spelled: str) -> tuple[torch.device, ...]:
    """Find the devices that a spelling means.

    "auto" is one device, the best there is: the other GPUs of a machine may be somebody else's. "cuda" is every
    visible GPU.

    Returns:
        At least one device; one process works on each.

    Raises:
        UsageError: if one of them is not here.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cuda": gpus > 0, "mps": torch.backends.mps.is_available(), "cpu": True}
    names = device_names(spelled)
    if names == ("auto",):
        return (torch.device(next(kind for kind, present in there.items() if present)),)
    devices: list[torch.device] = []
    for name in names:
        device = torch.device(name)
        if not there[device.type] or (device.index or 0) >= max(1, gpus):
            raise UsageError(f"device {name!r} is not available here", remedy="use --device auto")
        every = name == "cuda" and gpus > 1
        devices += [torch.device("cuda", index) for index in range(gpus)] if every else [device]
    return tuple(devices)


def choose_device(spelled: str) -> torch.device:
    """Find the device for work that runs on one: the first that the spelling means.

    Returns:
        The device.

    Raises:
        UsageError: if it is not here.
    """
    return choose_devices(spelled)[0]
