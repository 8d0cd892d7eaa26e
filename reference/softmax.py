r"""Softmax over the last axis.

    y_rc = e^(x_rc − m_r) / Σ_c e^(x_rc − m_r),   m_r = max_c x_rc

Bridle 1990, "Probabilistic Interpretation of Feedforward Classification Network Outputs"; the
maximum is subtracted so that no exponential overflows. A row that is −∞ throughout gives 0, as
attention does for a query without keys.

`R` rows (all leading axes), `C` columns (the last axis).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """The output, (..., C)."""

    y: Array


class Gradients(NamedTuple):
    """Gradient of the input, shaped as the input."""

    dx: Array


def check(x: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("x", x)
    checks.floating(x=x)
    checks.rows("x", x)


def forward(x: Array) -> tuple[Array, Cache]:
    """Return the softmax of each row: shares that add up to 1.

    Args:
        x: (..., C), floating; −∞ has a share of 0, even in a row of nothing else. A NaN or +∞ makes
            its row NaN.

    Returns:
        y (..., C) and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x)
    dtype, x = x.dtype, widened(x)
    # (1) maximum; 0 stands in for the maximum of a row that is all −∞
    top = x.max(axis=-1, keepdims=True, initial=-np.inf)  # (..., 1)
    top = np.where(top == -np.inf, 0, top)
    # (2) exponentials, and their sum
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        y = x - top
    np.exp(y, out=y)
    total = np.einsum("...c->...", y)[..., None]  # (..., 1)
    # (3) shares
    y *= 1 / np.where(total == 0, 1, total)
    y = rounded(y, dtype)
    return y, Cache(y)


def backward(dout: Array, cache: Cache) -> Gradients:
    """Return dx = y·(dout − Σ_c dout·y).

    Adding a constant to a row changes nothing, so the y-weighted mean of dout is subtracted.

    Args:
        dout: (..., C), of x's dtype.
        cache: from `forward`.

    Returns:
        dx (..., C), of x's dtype.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.gradient("dout", dout, cache.y.shape, cache.y.dtype)
    dtype, dout, y = dout.dtype, widened(dout), widened(cache.y)
    # (4) δ = Σ_c dout·y
    delta = np.einsum("...c,...c->...", dout, y)[..., None]  # (..., 1)
    # (5) dx = y·(dout − δ)
    dx = dout - delta
    dx *= y
    return Gradients(rounded(dx, dtype))
