"""float16 is computed in float32 and rounded where a result is returned, as in the kernels.

So is bfloat16, which NumPy knows only through `ml_dtypes`. The residual stream h of a norm is such
a result, and is rounded before it is normalised: its statistics are those of the numbers that
backward reads.

In float16 itself a sum of ones stops at 2,048, the square of 300 is infinite and 10⁻⁸ is 0. float32
and float64 are left as they are, and not copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def widened(x: Array) -> Array:
    """Return float16 and bfloat16 as float32, everything else as it is."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def rounded(x: Array, dtype: Any, to: Array | None = None) -> Array:
    """Return a result in a dtype or, if given, in the array `to`, of any dtype."""
    if to is None:
        return np.asarray(x, dtype)
    if to is not x:
        to[...] = x
    return to
