"""A watched side: notes inputs that a call writes to, and outputs that it leaves unwritten."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from twofold.core.ops import Side

Array = np.ndarray[Any, np.dtype[Any]]


class Watched:
    """A side that remembers what was placed on it, to see whether it was written to.

    What is placed is a copy: a case's inputs stay as they are, whatever is done to them.
    """

    def __init__(self, side: Side) -> None:
        self._placed: list[tuple[Any, Array]] = []
        self._to_numpy = side.to_numpy

        def asarray(x: Any, dtype: str | None = None) -> Any:
            array = side.asarray(np.array(x), dtype)
            self._placed.append((array, np.array(side.to_numpy(array), copy=True)))
            return array

        self.side = dataclasses.replace(side, asarray=asarray)

    def fault(self) -> str:
        """Say what was written to, "" if nothing was."""
        for i, (array, before) in enumerate(self._placed):
            if not np.array_equal(
                self._to_numpy(array), before, equal_nan=before.dtype.kind == "f"
            ):
                return f"input {i} of shape {before.shape} was written to"
        return ""


@contextlib.contextmanager
def unwritten_memory_is_nan(side: Side) -> Iterator[None]:
    """Let `torch.empty` give NaN, so that an element that no program wrote is seen."""
    if side.name != "triton":
        yield
        return
    from twofold.core.verify.strict import unwritten as strict_unwritten

    with strict_unwritten.watched():
        yield


def unwritten(side: Side, output: Any) -> str:
    """Say what left elements of an output unwritten, where that is known, else ""."""
    if side.name == "triton" and output is not None:
        from twofold.core.verify.strict import check_written
        from twofold.core.verify.strict.memory import Fault

        try:
            check_written(output)
        except Fault as fault:
            return str(fault)
    return ""
