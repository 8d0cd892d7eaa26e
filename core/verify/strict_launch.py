"""A strict launch: the language set up once, tagged pointers, typed numbers, programs in disorder.

`installed` puts everything in place and takes it back. Triton is imported here: see
`strict_builder`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import _normalize_ty

from twofold.core.verify import strict_numerics as numerics
from twofold.core.verify import strict_reductions
from twofold.core.verify import strict_unwritten as unwritten
from twofold.core.verify.strict_builder import StrictBuilder, Strictness
from twofold.core.verify.strict_memory import (
    Checks,
    Fault,
    Memory,
    StaticAssertion,
    Unsupported,
)
from twofold.core.verify.strict_unwritten import Record

# Frames of these files are not the kernel's.
_MACHINERY = (
    os.path.dirname(triton.__file__),
    os.path.dirname(np.__file__),
    os.path.dirname(__file__) + os.sep + "strict_",
)
_SCALARS = {
    "i8": tl.int8, "i16": tl.int16, "i32": tl.int32, "i64": tl.int64,
    "u8": tl.uint8, "u16": tl.uint16, "u32": tl.uint32, "u64": tl.uint64,
    "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64,
}  # fmt: skip


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
        scope.set_attr(tl.tensor, "__bool__", _truth)
        for language in (tl, tl.core):
            scope.set_attr(language, "static_assert", _static_assert)
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
    checks = Checks(strict.bounds, strict.races, strict.uninitialised)
    memory = builder.memory = Memory(fn.__name__, fn.__code__, checks, _MACHINERY)
    records = _records(args, kwargs) if strict.uninitialised else {}
    types = {name: _SCALARS.get(_normalize_ty(t)) for name, t in fn.__annotations__.items()}
    arguments = {
        name: x
        if name in executor.constexprs
        else _argument(name, x, types.get(name), memory, records, strict.numerics)
        for name, x in bound.items()
    }
    programs = list(np.ndindex(*grid))
    if strict.shuffle:
        random.Random(strict.seed).shuffle(programs)
    builder.set_grid_dim(*grid)
    # Overflow, NaN and infinity are no exceptions on the hardware.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for program in programs:
            builder.set_grid_idx(*program)
            memory.begin(program)
            try:
                fn(**arguments)
            except (Fault, Unsupported):
                raise
            except Exception as error:
                raise _explained(error, memory) from error
    executor._restore_args_dev(args, host_args, kwargs, host_kwargs)


def _explained(error: Exception, memory: Memory) -> Exception:
    """Return an exception that a statement of a kernel raised, with the statement's place."""
    site = memory.site(error.__traceback__)
    if isinstance(error, NotImplementedError):
        return Unsupported(memory.located(str(error), site))
    if isinstance(error, StaticAssertion):
        return StaticAssertion(memory.located(f"static_assert: {error}", site))
    return memory.fault(f"{type(error).__name__}: {error}", site)


def _records(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Record]:
    """Return what is known of uninitialised memory among the arguments, by its address."""
    found, rest = {}, [*args, *kwargs.values()]
    while rest:
        x = rest.pop()
        if isinstance(x, tuple):
            rest += x
        elif hasattr(x, "base"):  # of a descriptor, of a tensor with another dtype
            rest.append(x.base)
        elif isinstance(x, torch.Tensor) and (record := unwritten.record(x)) is not None:
            found[record.first] = record
    return found


def _argument(
    name: str, x: Any, dtype: Any, memory: Memory, records: dict[int, Record], typed: bool
) -> Any:
    """Convert a launch's argument: pointers get tags, numbers the type a compiled kernel has."""
    if hasattr(x, "data_ptr"):
        converted = interpreter._implicit_cvt(x)
        converted.handle.data = _pointer(name, x, memory, records)
        return converted
    if isinstance(x, tuple):
        parts = [
            _argument(f"{name}[{i}]", y, None, memory, records, typed) for i, y in enumerate(x)
        ]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if typed and isinstance(x, int | float) and not isinstance(x, bool):
        if dtype is None and isinstance(x, float):
            dtype = tl.float32
        if dtype is None and not -(2**31) <= x < 2**31:
            dtype = tl.int64 if x < 2**63 else tl.uint64
        if dtype is not None:
            value = np.array([x], interpreter._get_np_dtype(dtype))
            return tl.tensor(TensorHandle(value, dtype), dtype)
    converted = interpreter._implicit_cvt(x)
    if isinstance(converted, tl.tensor_descriptor):
        converted.handle.base.data = _pointer(name, x.base, memory, records)
    return converted


def _pointer(name: str, x: Any, memory: Memory, records: dict[int, Record]) -> Any:
    tensor = interpreter._unwrap_tensor(x)
    return memory.add(name, tensor, records.get(tensor.untyped_storage().data_ptr()))


def _truth(x: Any) -> bool:
    """Say whether a tensor of one element is true: of more, only Triton's own code may ask."""
    data = x.handle.data
    asked_by = sys._getframe(1).f_code.co_filename
    if data.size != 1 and not asked_by.startswith(_MACHINERY):
        raise ValueError(f"a block of shape {data.shape} is no condition of if, while, and, or")
    return bool(data.all()) if data.size == 1 else True


def _static_assert(condition: Any, message: str = "", _semantic: Any = None) -> None:
    if not condition:
        raise StaticAssertion(message)


@contextlib.contextmanager
def installed(strict: Strictness) -> Iterator[None]:
    """Make the interpreter strict, and what it was at the end."""
    builder, language = interpreter.interpreter_builder, Language()
    semantic = interpreter.TritonSemantic
    plain_load = semantic.load
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

    def load(self: Any, ptr: Any, mask: Any, other: Any, *how: Any, **more: Any) -> Any:
        # Triton asks `if other`, which for one element is false where it is 0.
        builder.other_given = other is not None
        try:
            return plain_load(self, ptr, mask, other, *how, **more)
        finally:
            builder.other_given = False

    def apply(self: Any, inputs: Any) -> Any:
        if not isinstance(inputs, tuple):
            return apply(self, (inputs,))[0]
        return strict_reductions.apply(plain_apply, self, inputs)

    with contextlib.ExitStack() as stack:
        stack.callback(language.restore)
        stack.enter_context(unwritten.watched(strict.poison))
        for owner, name, new in (
            (builder, "__class__", StrictBuilder),
            (builder, "strict", strict),
            (builder, "memory", None),
            (builder, "other_given", False),
            (builder, "kind", ""),
            (builder, "codegen_fns", {**builder.codegen_fns, "min_dot_size": _least_dot(builder)}),
            (interpreter.InterpretedFunction, "__call__", call),
            (interpreter.GridExecutor, "__call__", run),
            (interpreter.ReduceScanOpInterface, "apply", apply),
            (semantic, "load", load),
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


def _least_dot(builder: Any) -> Any:
    """Return the rule for the least shapes of `tl.dot` that NVIDIA's compiler has, if it is there.

    The interpreter's own takes any, and so does AMD's.
    """
    try:
        from triton.backends.nvidia.compiler import min_dot_size
    except ImportError:
        return builder.codegen_fns["min_dot_size"]
    return min_dot_size(GPUTarget("cuda", 90, 32))
