"""The colours: Okabe-Ito for series, cividis and RdBu_r for maps; never red against green."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

#: Okabe-Ito; each series also has its own dash or marker.
SERIES = {
    "loss": "#0072B2",
    "alarm": "#D55E00",
    "gradient": "#009E73",
    "rate": "#CC79A7",
    "a": "#0072B2",
    "b": "#E69F00",
    "rest": "#6b7280",
    "spike": "#D55E00",
    "resume": "#6b7280",
    "parting": "#444444",
}

#: Entries of an indexed picture that are not values.
ABSENT = 0
BROKEN = 1
FIRST_COLOUR = 2
COLOURS = 253


@cache
def palette(name: str) -> NDArray[np.uint8]:
    """Give a picture's 255 colours: absent, not finite, then 253 of a colour map.

    Returns:
        255 x 3 bytes.
    """
    import matplotlib

    colours = matplotlib.colormaps[name](np.linspace(0, 1, COLOURS))[:, :3]
    fixed = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    return np.round(np.vstack([fixed, colours]) * 255).astype(np.uint8)


@cache
def band_palette() -> NDArray[np.uint8]:
    """Give the colours of the four bands: absent, not finite, then four steps of cividis.

    Returns:
        6 x 3 bytes.
    """
    every = palette("cividis")
    chosen = FIRST_COLOUR + np.array([20, 100, 175, 252])
    return np.vstack([every[:2], every[chosen]])


#: Arms of a retraining: told apart with any colour vision (smallest distance 13 in CIELAB) and 3:1 on the page;
#: from the sixth arm on, the dash changes too. "As was" is drawn in the ink.
ARMS_LIGHT = ("#0060a8", "#d55e00", "#007a58", "#b8578c", "#3399d6")
ARMS_DARK = ("#4a8fea", "#ff8a3d", "#2cc59b", "#e39bc4", "#8fd3ff")
ARM_DASHES = ("solid", "dashed", "dotted")
