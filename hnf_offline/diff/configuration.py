"""Which hyper-parameters of two runs differ, paths and times left out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hnf_offline.comparison import Difference

if TYPE_CHECKING:
    from hnf_offline.diff.series import Series

#: Configuration keys that say where and when a run was made, not how.
PLACE_OR_TIME = re.compile(
    r"(^|[._])(path|paths|dir|dirs|directory|folder|file|files|url|uuid|run_?id|run_?name|_name_or_path|hostname|user"
    r"|timestamp|time|date|started|finished|created|created_at|seconds|runtime|total_flos)$"
)
A_PATH = re.compile(r"^(/|~/|\.{1,2}/|[A-Za-z]:\\|file://)")
A_TIME = re.compile(r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2})?")


def configuration_differences(
    a: Mapping[str, Any], b: Mapping[str, Any]
) -> tuple[tuple[Difference, ...], dict[str, Any]]:
    """Compare two configurations key by key, leaving out paths and times.

    Returns:
        The keys that differ (None where a run does not state one), and the keys that agree.
    """
    keys = sorted(set(a) | set(b))
    meant = [key for key in keys if not _is_place_or_time(key, a.get(key), b.get(key))]
    differing = tuple(
        Difference(key, a.get(key), b.get(key)) for key in meant if not _equal(a.get(key), b.get(key))
    )
    return differing, {key: a[key] for key in meant if key in a and key in b and _equal(a[key], b[key])}


def logged_learning_rate(log_series: list[tuple[str, Series]]) -> tuple[Difference, ...]:
    """Compare the peaks of the logged learning rates, for runs whose configuration does not state them.

    Returns:
        One difference, or none where they agree.
    """
    for name, series in log_series:
        if name == "learning_rate":
            a, b = float(np.nanmax(series.own_a)), float(np.nanmax(series.own_b))
            if not math.isclose(a, b, rel_tol=1e-6):
                return (Difference("learning_rate (highest logged)", a, b),)
    return ()


def _is_place_or_time(key: str, a: Any, b: Any) -> bool:
    if PLACE_OR_TIME.search(key):
        return True
    texts = [value for value in (a, b) if value is not None]
    return bool(texts) and all(
        isinstance(value, str) and (A_PATH.match(value) or A_TIME.match(value)) for value in texts
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(a == b)
