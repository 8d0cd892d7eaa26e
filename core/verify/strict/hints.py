"""Hints to the compiler, which believes them: whether they are true of the values they are given.

What `tl.multiple_of`, `tl.max_contiguous` and `tl.max_constancy` say is what wider loads and stores
rest on, and the interpreter only writes it down. Meanings as in Triton's documentation of each.

Two hints are left alone. Offsets that start over at 0 (`offs % M`, `tl.where(offs < M, offs, 0)`)
are said to be contiguous in Triton's own tutorials: lanes past the end, whose results are dropped.
And of an address no more than 16 bytes are asked, on which memory of the CPU begins.

Triton is imported here: see `builder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

Array = np.ndarray[Any, np.dtype[Any]]

_ALIGNED = 16  # bytes


def _uneven(x: Array, step: int, of: int) -> Array:
    """Return where a contiguous group begins at no multiple of `of`."""
    follows = np.zeros(x.shape, bool)
    follows[1:] = x[1:] == x[:-1] + step
    return np.asarray(~follows & (x % of != 0))


def _apart(x: Array, step: int, group: int) -> Array:
    """Return where an element of a group does not come after the one before it."""
    broken = _moved(x, step, group)
    return broken & (x != 0) if step == 1 else broken


def _moved(x: Array, step: int, group: int) -> Array:
    """Return where an element of a group is not `step` more than the one before it."""
    broken = np.zeros(x.shape, bool)
    broken[1:] = x[1:] != x[:-1] + step
    broken[::group] = False
    return broken


def multiple_of(input: Any, values: Any, **_: Any) -> Any:
    """Check that contiguous groups begin at multiples."""
    return _checked("multiple_of", input, values, _uneven)


def max_contiguous(input: Any, values: Any, **_: Any) -> Any:
    """Check that groups of elements count up."""
    return _checked("max_contiguous", input, values, _apart)


def max_constancy(input: Any, values: Any, **_: Any) -> Any:
    """Check that groups of elements are the same."""
    return _checked("max_constancy", input, values, lambda x, _, group: _moved(x, 0, group))


HINTS = {f.__name__: f for f in (multiple_of, max_contiguous, max_constancy)}


def _checked(name: str, input: Any, values: Any, wrong: Callable[[Array, int, int], Array]) -> Any:
    """Return the input, of which the hint must be true."""
    if not isinstance(input, tl.tensor):
        return input
    axes: Any = values if isinstance(values, list | tuple | tl.tuple) else [values]
    said = [int(v.value if isinstance(v, tl.constexpr) else v) for v in axes]
    if len(said) != max(1, len(input.shape)):
        raise ValueError(f"{name} has {len(said)} values for {len(input.shape)} axes")
    step, x = 1, input.handle.data
    if (element := input.dtype).is_ptr():
        step = max(1, element.element_ty.primitive_bitwidth // 8)
        if name == "multiple_of":
            said = [min(value, _ALIGNED) for value in said]
    for axis, value in enumerate(said):
        along = np.moveaxis(x, axis, 0)
        if (found := wrong(along, step, value)).any():
            first = "an address" if element.is_ptr() else int(along[found][0])
            what = f"{name}({value}) is not true on axis {axis} at {first}"
            raise interpreter.interpreter_builder.memory.fault(what)
    return input
