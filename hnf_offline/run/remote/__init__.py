"""Runs on object stores and servers: read through fsspec, one checkpoint at a time, from a skeleton on this disk."""

from hnf_offline.run.remote.address import address_of, local_path
from hnf_offline.run.remote.registry import (
    available,
    check_room,
    close_all,
    identity,
    open_address,
    read_range,
    whole,
)

__all__ = [
    "address_of",
    "available",
    "check_room",
    "close_all",
    "identity",
    "local_path",
    "open_address",
    "read_range",
    "whole",
]
