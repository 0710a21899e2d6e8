"""A run that is still going on: what is new in its log and among its checkpoints, told as it appears."""

from hnf_offline.follow.asked import Following, Waiting, place
from hnf_offline.follow.follower import follow

__all__ = ["Following", "Waiting", "follow", "place"]
