"""An indexed PNG of one pixel a cell, as a data: address; the picture is the data."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from numpy.typing import NDArray


def data_address(cells: NDArray[np.uint8], colours: NDArray[np.uint8], *, transparent: int | None = 0) -> str:
    """Encode palette indices as a PNG of one byte a pixel.

    Args:
        cells: rows x columns of palette indices.
        colours: n x 3 bytes.
        transparent: index that shows what lies below, None for none.

    Returns:
        A data: address.
    """
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(cells))
    picture.putpalette(colours.tobytes())
    stream = BytesIO()
    options = {} if transparent is None else {"transparency": transparent}
    picture.save(stream, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
