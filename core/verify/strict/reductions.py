"""Strict reductions and scans of the interpreter: bfloat16 in float32, integers that do not wrap.

A maximum does not ignore poison from masked lanes, as it does other NaNs, and a sort gives it no
place: the result of comparing anything with it is unknown, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import ReduceOps, TensorHandle

from twofold.core.verify.strict import numerics

_EXTREMES = tuple(
    getattr(tl.standard, name)
    for name in (
        "_elementwise_max",
        "_elementwise_min",
        "_argmax_combine_tie_break_left",
        "_argmax_combine_tie_break_fast",
        "_argmin_combine_tie_break_left",
        "_argmin_combine_tie_break_fast",
    )
)

SORTS = tuple(getattr(tl.standard, name) for name in ("sort", "topk", "bitonic_merge"))


def apply(plain: Callable[..., Any], operation: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Do strictly what `plain`, Triton's own `ReduceScanOpInterface.apply`, does."""
    builder = interpreter.interpreter_builder
    strict = builder.strict
    if strict.overflow and operation.combine_fn is tl.standard._sum_combine:
        _check_sum(operation, inputs[0])
    narrow = [strict.numerics and x.dtype == tl.bfloat16 for x in inputs]
    wide = [_cast(x, tl.float32) if small else x for x, small in zip(inputs, narrow, strict=True)]
    results = plain(operation, tuple(wide))
    if builder.memory.unspecified and any(operation.combine_fn is f for f in _EXTREMES):
        _keep_poison(operation, wide[0].handle, results)
    return tuple(
        _cast(y, tl.bfloat16) if small else y for y, small in zip(results, narrow, strict=True)
    )


def _check_sum(operation: Any, x: Any) -> None:
    if not x.dtype.is_int():
        return
    data = x.handle.data
    add = np.sum if isinstance(operation, ReduceOps) else np.cumsum
    if numerics.sum_overflows(data, add(data, axis=operation.axis)):
        name = "sum" if add is np.sum else "cumsum"
        raise interpreter.interpreter_builder.memory.fault(f"{x.dtype} overflow in {name}")


def _keep_poison(operation: Any, handle: Any, results: tuple[Any, ...]) -> None:
    """Put poison into a maximum or minimum, and its index, where an operand has it."""
    if handle.data.dtype.kind != "f":
        return
    found = numerics.is_poison(handle.data)
    if not found.any():
        return
    if isinstance(operation, ReduceOps):
        found = found.any(axis=operation.axis, keepdims=operation.keep_dims)
    else:
        found = np.logical_or.accumulate(found, axis=operation.axis)
    for result in results:
        data = result.handle.data
        result.handle.data = np.where(found, numerics.poison(data.dtype, False), data)


def keep_poison_sorted(result: Any, x: Any, *_: Any, **__: Any) -> None:
    """Put poison into all of the sorted last axis, where any operand along it has it."""
    if not interpreter.interpreter_builder.memory.unspecified or not x.dtype.is_floating():
        return
    found = numerics.is_poison(x.handle.data).any(axis=-1, keepdims=True)
    if found.any():
        data = result.handle.data
        poison = numerics.poison(data.dtype, x.dtype == tl.bfloat16)
        result.handle.data = np.where(found, poison, data)


def _cast(x: Any, dtype: Any) -> Any:
    handle: TensorHandle = interpreter.interpreter_builder.cast_impl(x.handle, dtype)
    return tl.tensor(handle, tl.block_type(dtype, x.shape) if x.type.is_block() else dtype)
