"""The NumPy side's threads; results do not depend on their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

_X = TypeVar("_X")
_Y = TypeVar("_Y")
_threads = 2
_pool = ThreadPoolExecutor(_threads, "twofold")


def use_threads(n: int) -> None:
    """Let the NumPy side work on `n` parts of a batch at a time; results do not change."""
    global _pool, _threads
    _threads = n
    _pool = ThreadPoolExecutor(n, "twofold")


# A fork has none of its parent's threads, and would wait for them.
os.register_at_fork(after_in_child=lambda: use_threads(_threads))


def parallel(work: Callable[[_X], _Y], items: Sequence[_X]) -> list[_Y]:
    """Apply `work` to every item, in threads; to one alone, in this one."""

    def quiet(item: _X) -> _Y:
        with np.errstate(all="ignore"):  # non-finite values show in the loss; see Diverged
            return work(item)

    return [quiet(items[0])] if len(items) == 1 else list(_pool.map(quiet, items))
