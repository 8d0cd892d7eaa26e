"""Roundings of numbers: how large one is, which numbers share one, where numbers overflow."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.core.verify.machines import Machine

Array = np.ndarray[Any, np.dtype[Any]]


def gamma(n: int, u: float) -> float:
    """Return γ_n = nu/(1 − nu), the relative error of n roundings (Higham 2002, lemma 3.1)."""
    return n * u / (1 - n * u) if n * u < 1 else np.inf


def half_unit(x: Array, u: float) -> Array:
    """Return half a unit in the last place of numbers up to `x` ≥ 0, u a dtype's unit roundoff."""
    exponent = np.frexp(np.where(np.isfinite(x), x, 1.0))[1] - 1
    return np.asarray(np.ldexp(u, exponent))


def overflow(on: Machine) -> float:
    """Return the least number that is cast to infinity: half a unit beyond the largest."""
    return on.huge + float(half_unit(np.asarray(on.huge), on.u_storage))


def alike(x: Array, u: float, axis: int) -> Array:
    """Return how many numbers along an axis share each one's rounding, itself included; 0 for a 0.

    Those are all nearer than a quarter of a unit in the last place, u the unit roundoff: those in
    the number's cell of a logarithmic grid of eighths of it, and in both neighbouring cells.
    """
    if u == 0.0:
        return np.ones_like(x)
    rows = np.moveaxis(np.abs(x), axis, -1)
    shape, rows = rows.shape, rows.reshape(-1, rows.shape[-1])
    counted = np.isfinite(rows) & (rows > 0)
    width = max(u, 2.0**-26) / 4
    cells = np.floor(np.log2(np.where(counted, rows, 1.0)) / width).astype(np.int64)
    keys = (np.arange(len(rows))[:, None] * 2**40 + cells).ravel()
    ordered = np.sort(keys[counted.ravel()])
    found = np.searchsorted(ordered, keys + 1, "right") - np.searchsorted(ordered, keys - 1, "left")
    found = np.where(counted.ravel(), found, 0).reshape(shape)
    return np.moveaxis(found, -1, axis).astype(np.float64)
