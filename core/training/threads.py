"""The threads that the NumPy side works in; its results do not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

_X = TypeVar("_X")
_Y = TypeVar("_Y")
_pool = ThreadPoolExecutor(2, "twofold")


def use_threads(n: int) -> None:
    """Let the NumPy side work on so many parts of a batch at a time; results do not change."""
    global _pool
    _pool = ThreadPoolExecutor(n, "twofold")


def parallel(work: Callable[[_X], _Y], items: Sequence[_X]) -> list[_Y]:
    """Apply `work` to every item, in threads."""
    if len(items) == 1:
        return [work(items[0])]

    def quiet(item: _X) -> _Y:
        with np.errstate(all="ignore"):  # what is not finite is seen in the loss; see Diverged
            return work(item)

    return list(_pool.map(quiet, items))
