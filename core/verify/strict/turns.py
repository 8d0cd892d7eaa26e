"""The order in which the programs of a launch run: drawn from the seed, and reversed the next time.

Results that depend on the order, such as the bits of a sum by float atomics, or who writes last,
are the same in two runs with one order. So the same launch, repeated, runs its programs in reverse,
and then again as at first: two successive runs differ in their order, a third is like the first,
and replaying two of them shows the same, in a new process too, whatever was launched before. This
fails if one run makes the same launch twice.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from twofold.core.verify.strict.memory import Program

_LOOKED_AT = 4096  # bytes of a tensor by which launches are told apart


class Turns:
    """Which launches are to run in reverse the next time."""

    def __init__(self) -> None:
        self._reversed: set[int] = set()

    def programs(
        self, fn: Callable[..., Any], grid: Program, arguments: Iterable[Any], seed: int | None
    ) -> list[Program]:
        """Return a grid's programs in the order in which they run, the natural one if unseeded.

        Args:
            fn: the kernel.
            grid: how many programs there are on each axis.
            arguments: those of this launch, with tensors on the CPU.
            seed: of the order.
        """
        programs: list[Any] = list(np.ndindex(*grid))
        if seed is None or len(programs) < 2:
            return programs
        random.Random(seed).shuffle(programs)
        launch = hash((fn, grid, _likeness(tuple(arguments))))
        if launch in self._reversed:
            programs.reverse()
        self._reversed ^= {launch}
        return programs


def _likeness(x: Any) -> Any:
    """Return what identifies an argument in equal launches: numbers, a tensor's first bytes."""
    if isinstance(x, tuple):
        return tuple(map(_likeness, x))
    if hasattr(x, "base"):  # a descriptor, or a tensor reinterpreted in another dtype
        return _likeness(x.base)
    if not isinstance(x, torch.Tensor):
        return repr(x) if isinstance(x, int | float | str) else type(x)
    spread = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    size = (spread + 1) * x.element_size() if x.numel() else 0
    begins = ctypes.string_at(x.data_ptr(), min(size, _LOOKED_AT))
    return x.dtype, x.shape, x.stride(), begins
