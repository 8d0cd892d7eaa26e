"""Triton's interpreter with its arithmetic, its memory and its launch made strict.

Import this through `strict_interpreter`, and only after TRITON_INTERPRET is set as it shall be:
Triton reads it when it is imported.
"""

# ruff: noqa: D102  (the builder's methods are Triton's, and do what theirs do)

from __future__ import annotations

import contextlib
import inspect
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
from triton.runtime.jit import _normalize_ty

from twofold.core.verify import strict_numerics as numerics
from twofold.core.verify.strict_memory import Array, Memory

# Frames of these files are not the kernel's.
_MACHINERY = (os.path.dirname(triton.__file__), os.path.dirname(__file__) + os.sep + "strict_")
_SCALARS = {
    "i8": tl.int8, "i16": tl.int16, "i32": tl.int32, "i64": tl.int64,
    "u8": tl.uint8, "u16": tl.uint16, "u32": tl.uint32, "u64": tl.uint64,
    "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64,
}  # fmt: skip
_FLOATS = (tl.float16, tl.bfloat16, tl.float32, tl.float64)


@dataclass(frozen=True)
class Strictness:
    """What to check; see `strict_interpreter`."""

    numerics: bool
    bounds: bool
    poison: bool
    races: bool
    overflow: bool
    shuffle: bool
    seed: int


class StrictBuilder(InterpreterBuilder):  # type: ignore[misc]  # Triton has no types
    """The interpreter's operations, strict. Triton's one builder becomes one; none is made."""

    strict: Strictness
    memory: Memory

    # memory

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *how: Any, **more: Any) -> Any:
        live = _data(mask)
        addresses = self.memory.access("load", ptrs.data, live, _size(ptrs))
        if other is None and self.strict.poison and not live.all():
            dtype = ptrs.get_element_ty()
            numpy_dtype = interpreter._get_np_dtype(dtype)
            value = numerics.poison(numpy_dtype, dtype == tl.bfloat16)
            other = TensorHandle(np.full(ptrs.data.shape, value, numpy_dtype), dtype)
        ptrs = TensorHandle(addresses, ptrs.dtype)
        return super().create_masked_load(ptrs, mask, other, *how, **more)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *how: Any, **more: Any) -> Any:
        live = _data(mask)
        addresses = self.memory.access("store", ptrs.data, live, _size(ptrs))
        ptrs = TensorHandle(addresses, ptrs.dtype)
        result = super().create_masked_store(ptrs, value, mask, *how, **more)
        if self.strict.races:
            self._lanes_agree(addresses, value.data, live)
        return result

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, *how: Any) -> Any:
        addresses = self.memory.access("atomic", ptr.data, _data(mask), _size(ptr))
        return super().create_atomic_rmw(op, TensorHandle(addresses, ptr.dtype), val, mask, *how)

    def create_atomic_cas(self, ptr: Any, *how: Any) -> Any:
        everywhere = np.ones(ptr.data.shape, bool)
        addresses = self.memory.access("atomic", ptr.data, everywhere, _size(ptr))
        return super().create_atomic_cas(TensorHandle(addresses, ptr.dtype), *how)

    def _lanes_agree(self, addresses: Array, value: Array, live: Array) -> None:
        """Read back what a store wrote: a lane that finds another value shared its address."""
        value = np.ascontiguousarray(np.broadcast_to(value, addresses.shape))
        found = interpreter._interpreter.load(addresses, live, value, value.dtype)
        if found.tobytes() != value.tobytes():
            raise self.memory.fault("two lanes of one store write different values to one element")

    # arithmetic

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if not self.strict.numerics or tl.bfloat16 not in (source, target) or source == target:
            return super().cast_impl(src, dst_type)
        data = numerics.from_bfloat16(src.data) if source == tl.bfloat16 else src.data
        if target == tl.bfloat16:
            return TensorHandle(numerics.to_bfloat16(data), target)
        return TensorHandle(data.astype(interpreter._get_np_dtype(target)), target)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if not self.strict.numerics or source not in _FLOATS or target not in _FLOATS:
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        result = self.cast_impl(src, dst_type)
        if rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ:
            wide = self.cast_impl(src, tl.float64).data
            result = TensorHandle(numerics.toward_zero(result.data, wide), target)
        return result

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, *how: Any) -> Any:
        kinds = {a.dtype.scalar, b.dtype.scalar}
        if not self.strict.numerics or not kinds <= {tl.float16, tl.bfloat16, tl.float32}:
            return super().create_dot(a, b, d, input_precision, *how)
        x, y = (self.cast_impl(operand, tl.float32).data for operand in (a, b))
        precision = input_precision.name.lower() if kinds == {tl.float32} else "ieee"
        result = numerics.dot(x, y, d.data, precision)
        return TensorHandle(result.astype(d.data.dtype, copy=False), d.dtype.scalar)

    def get_bf16(self, value: Any) -> Any:
        return TensorHandle(numerics.to_bfloat16(np.array([value])), tl.bfloat16)

    def unary_op(self, arg: Any, op: Any) -> Any:
        return self._in_float32(super().unary_op, (arg,), op)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        return self._in_float32(super().binary_op, (lhs, rhs), op)

    def ternary_op(self, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        if op is np.where:  # moves bits, whatever they mean
            return super().ternary_op(lhs, rhs, other, op)
        return self._in_float32(super().ternary_op, (lhs, rhs, other), op)

    def create_fma(self, x: Any, y: Any, z: Any) -> Any:
        return self._in_float32(super().create_fma, (x, y, z))

    def _in_float32(
        self, operation: Callable[..., Any], operands: tuple[Any, ...], *op: Any
    ) -> Any:
        """Apply an elementwise operation; on bfloat16 in float32, rounded once at the end."""
        if operands[-1].dtype.scalar != tl.bfloat16 or not self.strict.numerics:
            return operation(*operands, *op)
        result = operation(*(self.cast_impl(x, tl.float32) for x in operands), *op)
        if result.data.dtype.kind == "f":
            return self.cast_impl(result, tl.bfloat16)
        return TensorHandle(result.data, tl.bfloat16)  # a comparison


def _data(mask: Any) -> Array:
    return np.asarray(mask.data if isinstance(mask, TensorHandle) else mask)


def _size(pointer: Any) -> int:
    return max(1, pointer.get_element_ty().primitive_bitwidth // 8)


class Language:
    """Triton's language, pointed at the interpreter once instead of at every call.

    The interpreter replaces some two hundred members of `triton.language` at each launch and again
    at each call of a jitted function, `tl.sum` and `tl.zeros` among them: most of its running time.
    """

    def __init__(self) -> None:
        self._scopes: list[Any] = []
        self._known: set[Any] = set()
        self._modules: set[tuple[bool, bool]] = set()

    def patch(self, fn: Any) -> None:
        """See to it that the modules a function knows are replaced."""
        if fn in self._known:
            return
        self._known.add(fn)
        values = [x for x in fn.__globals__.values() if inspect.ismodule(x)]
        modules = (tl in values, tl.core in values)
        if modules in self._modules:
            return
        self._modules.add(modules)
        scope = interpreter._patch_lang(fn)
        # Triton 3.6 takes int() of an array with an axis, which NumPy no longer allows.
        scope.set_attr(tl.tensor, "__index__", lambda self: int(self.handle.data.item()))
        self._scopes.append(scope)

    def restore(self) -> None:
        """Take everything back."""
        while self._scopes:
            self._scopes.pop().restore()


def launch(
    executor: Any, language: Language, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Run all programs of a grid: `GridExecutor.__call__`, strict."""
    builder = interpreter.interpreter_builder
    strict: Strictness = builder.strict
    fn = executor.fn
    kwargs = {name: x for name, x in kwargs.items() if name in executor.arg_names}
    host_args, host_kwargs = executor._init_args_hst(args, kwargs)
    for hook in executor.pre_run_hooks:
        hook(*host_args, **host_kwargs)
    bound = inspect.getcallargs(fn, *host_args, **host_kwargs)
    grid = tuple(executor.grid(bound) if callable(executor.grid) else executor.grid)
    grid += (1,) * (3 - len(grid))
    language.patch(fn)
    memory = Memory(fn.__name__, fn.__code__, strict.bounds, strict.races, _MACHINERY)
    types = {name: _SCALARS.get(_normalize_ty(t)) for name, t in fn.__annotations__.items()}
    arguments = {
        name: x
        if name in executor.constexprs
        else _argument(name, x, types.get(name), memory, strict.numerics)
        for name, x in bound.items()
    }
    programs = list(np.ndindex(*grid))
    if strict.shuffle:
        random.Random(strict.seed).shuffle(programs)
    builder.memory = memory
    builder.set_grid_dim(*grid)
    # Overflow, NaN and infinity are no exceptions on the hardware.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for program in programs:
            builder.set_grid_idx(*program)
            memory.begin(program)
            fn(**arguments)
    executor._restore_args_dev(args, host_args, kwargs, host_kwargs)


def _argument(name: str, x: Any, dtype: Any, memory: Memory, numerics: bool) -> Any:
    """Convert a launch's argument: pointers get tags, numbers the type a compiled kernel has."""
    if hasattr(x, "data_ptr"):
        converted = interpreter._implicit_cvt(x)
        converted.handle.data = memory.add(name, interpreter._unwrap_tensor(x))
        return converted
    if isinstance(x, tuple):
        parts = (_argument(f"{name}[{i}]", y, None, memory, numerics) for i, y in enumerate(x))
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if numerics and isinstance(x, int | float) and not isinstance(x, bool):
        if dtype is None and isinstance(x, float):
            dtype = tl.float32
        if dtype is not None:
            value = np.array([x]).astype(interpreter._get_np_dtype(dtype))
            return tl.tensor(TensorHandle(value, dtype), dtype)
    converted = interpreter._implicit_cvt(x)
    if isinstance(converted, tl.tensor_descriptor):
        converted.handle.base.data = memory.add(name, x.base)
    return converted


@contextlib.contextmanager
def installed(strict: Strictness) -> Iterator[None]:
    """Make the interpreter strict, and what it was at the end."""
    builder, language = interpreter.interpreter_builder, Language()
    semantic = interpreter.TritonSemantic
    plain_overflow = semantic.binary_op_sanitize_overflow_impl
    plain_apply = interpreter.ReduceScanOpInterface.apply

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        language.patch(function.fn)
        return function.rewrite()(*args, **kwargs)

    def run(executor: Any, *args: Any, **kwargs: Any) -> None:
        launch(executor, language, args, kwargs)

    def overflow(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        if self.builder is not builder:
            plain_overflow(self, lhs, rhs, operation)
        elif strict.overflow and lhs.type.scalar.int_bitwidth < 64:
            a, b = lhs.handle.data, rhs.handle.data
            if a.dtype.kind in "iu" and numerics.overflows(operation.__name__, a, b):
                raise builder.memory.fault(f"{lhs.type.scalar} overflow in {operation.__name__}")

    def apply(self: Any, inputs: Any) -> Any:
        if not isinstance(inputs, tuple):
            return apply(self, (inputs,))[0]
        narrow = [strict.numerics and x.dtype == tl.bfloat16 for x in inputs]
        wide = [
            _cast(x, tl.float32) if small else x for x, small in zip(inputs, narrow, strict=True)
        ]
        results = plain_apply(self, tuple(wide))
        return tuple(
            _cast(y, tl.bfloat16) if small else y for y, small in zip(results, narrow, strict=True)
        )

    with contextlib.ExitStack() as stack:
        stack.callback(language.restore)
        for owner, name, new in (
            (builder, "__class__", StrictBuilder),
            (builder, "strict", strict),
            (builder, "memory", None),
            (interpreter.InterpretedFunction, "__call__", call),
            (interpreter.GridExecutor, "__call__", run),
            (interpreter.ReduceScanOpInterface, "apply", apply),
            (semantic, "binary_op_sanitize_overflow_impl", overflow),
        ):
            stack.enter_context(_replaced(owner, name, new))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    missing = object()
    old = getattr(owner, name, missing)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if old is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, old)


def _cast(x: Any, dtype: Any) -> Any:
    handle = interpreter.interpreter_builder.cast_impl(x.handle, dtype)
    return tl.tensor(handle, tl.block_type(dtype, x.shape) if x.type.is_block() else dtype)
