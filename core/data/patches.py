"""Images cut into square patches: the tokens of a Transformer that reads images."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.reference import checks

Array = np.ndarray[Any, np.dtype[Any]]


def patches(images: Array, size: int) -> Array:
    """Return each image as a sequence of patches, row by row (Dosovitskiy et al. 2021).

    Args:
        images: (n, H, W).
        size: side of a patch; must divide H and W.

    Returns:
        (n, H / size · W / size, size · size) float32; each patch is flattened row by row.
    """
    images = np.asarray(images)
    checks.shape("images", images, ("n", "H", "W"))
    n, height, width = images.shape
    divides = size >= 1 and height % size == 0 and width % size == 0
    checks.require(divides, "size", size, f"a divisor of both {height} and {width}")
    grid = images.reshape(n, height // size, size, width // size, size)
    rows = grid.transpose(0, 1, 3, 2, 4)  # (n, H / size, W / size, size, size)
    return np.ascontiguousarray(rows.reshape(n, -1, size * size), dtype=np.float32)
