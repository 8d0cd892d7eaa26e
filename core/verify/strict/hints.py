"""Checks that hints, which the compiler trusts, are true of the values that they are given.

Wider loads and stores rest on `tl.multiple_of`, `tl.max_contiguous` and `tl.max_constancy`, which
the interpreter only records. Their meanings are those of Triton's documentation.

Two hints are left alone. Offsets that start over at 0 (`offs % M`, `tl.where(offs < M, offs, 0)`)
are called contiguous in Triton's own tutorials: those lanes are past the end, and their results are
dropped. And an address need only be a multiple of 16 bytes, the alignment of CPU memory.

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
    """Return where a contiguous group does not begin at a multiple of `of`."""
    follows = np.zeros(x.shape, bool)
    follows[1:] = x[1:] == x[:-1] + step
    return np.asarray(~follows & (x % of != 0))


def _apart(x: Array, step: int, group: int) -> Array:
    """Return where an element of a group neither follows the one before it nor starts over at 0."""
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
    """Check that groups of elements are consecutive."""
    return _checked("max_contiguous", input, values, _apart)


def max_constancy(input: Any, values: Any, **_: Any) -> Any:
    """Check that groups of elements are constant."""
    return _checked("max_constancy", input, values, lambda x, _, group: _moved(x, 0, group))


HINTS = {f.__name__: f for f in (multiple_of, max_contiguous, max_constancy)}


def _checked(name: str, input: Any, values: Any, wrong: Callable[[Array, int, int], Array]) -> Any:
    """Return the input, after checking that the hint is true of it."""
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
