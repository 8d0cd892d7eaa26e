"""Stratified splits: examples in two parts, every class in the same proportion, from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.reference import checks

Array = np.ndarray[Any, np.dtype[Any]]


def stratified_split(y: Array, share: float, seed: int) -> tuple[Array, Array]:
    """Return the indices that are kept and those held out, each ascending; a pure function.

    Of a class with n examples, share · n are held out, rounded to the nearest; but of two or more
    at least one is held out (if share > 0), and one is always kept, so the only example of a class
    is never held out.

    Args:
        y: (n,) class of every example.
        share: of each class to hold out, at least 0 and below 1.
        seed: of the random choice.
    """
    checks.probability("share", share)
    y = np.asarray(y)
    checks.shape("y", y, ("n",))
    rng = np.random.default_rng(seed)
    held = np.zeros(len(y), bool)
    for value in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == value))
        count = max(int(share * len(members) + 0.5), int(share > 0.0))
        held[members[: min(count, len(members) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
