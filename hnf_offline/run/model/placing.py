"""Tensors on their way from the disk to the device: page-locked in memory, so that the copy waits for nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key")


def can_be_pinned(tensors: Iterable[Tensor], device: torch.device, room: int) -> bool:
    """Say whether some tensors are worth page-locked memory: only what goes to a CUDA device, and fits.

    Page-locked memory is taken from everybody on the machine, so it stays within the room that is given.

    Args:
        tensors: what has been read.
        device: where it is going.
        room: bytes that may be locked.

    Returns:
        False for any other device.
    """
    return device.type == "cuda" and sum(tensor.numel() * tensor.element_size() for tensor in tensors) <= room


def pinned(tensors: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Copy tensors into page-locked memory. A mapped file is read by this, so it belongs into the reading thread.

    Returns:
        The same names; empty tensors and those that are page-locked or not on the CPU already as they were.
    """
    return {
        key: tensor.pin_memory()
        if tensor.device.type == "cpu" and tensor.numel() and tensor.layout == torch.strided
        else tensor
        for key, tensor in tensors.items()
    }


def placed(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device; to a CUDA device without waiting for it, which page-locked memory allows.

    The host allocator keeps page-locked memory until the copy out of it is done, and CUDA stages a copy out of
    other memory before the call returns, so the source may be dropped at once either way.

    Args:
        tensor: anywhere.
        device: where to.

    Returns:
        The tensor there, in its own dtype: what is narrow on disk is widened on the device.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
