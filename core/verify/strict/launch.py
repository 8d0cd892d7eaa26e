"""A strict launch: tagged pointers, typed numbers, shuffled programs, faults with their place.

`installed` puts everything in place and restores it. Triton is imported here: see `builder`.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import _normalize_ty

from twofold.core.verify.executed import kernel_line
from twofold.core.verify.strict import numerics, reductions, speed, unwritten
from twofold.core.verify.strict.builder import StrictBuilder, Strictness
from twofold.core.verify.strict.language import (
    MACHINERY,
    REWRITTEN,
    Language,
    Rewriting,
    decided,
    joined,
    known_global,
    loop,
    negated,
    refused,
)
from twofold.core.verify.strict.memory import (
    Checks,
    Fault,
    Memory,
    StaticAssertion,
    Unsupported,
)
from twofold.core.verify.strict.turns import Turns
from twofold.core.verify.strict.unwritten import Record

_SCALARS = {
    "i8": tl.int8, "i16": tl.int16, "i32": tl.int32, "i64": tl.int64,
    "u8": tl.uint8, "u16": tl.uint16, "u32": tl.uint32, "u64": tl.uint64,
    "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64,
}  # fmt: skip

# NVIDIA's, "CUDA C++ Programming Guide", technical specifications per compute capability.
_MOST_PROGRAMS = (2**31 - 1, 2**16 - 1, 2**16 - 1)
_WARPS = (1, 2, 4, 8, 16, 32)

launches = 0  # so far


def launch(
    executor: Any, language: Language, turns: Turns, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Run all programs of a grid: `GridExecutor.__call__`, strict."""
    global launches
    launches += 1
    builder = interpreter.interpreter_builder
    strict: Strictness = builder.strict
    fn = executor.fn
    _check_warps(fn.__name__, kwargs.get("num_warps"))
    kwargs = {name: x for name, x in kwargs.items() if name in executor.arg_names}
    host_args, host_kwargs = executor._init_args_hst(args, kwargs)
    for hook in executor.pre_run_hooks:
        hook(*host_args, **host_kwargs)
    bound = inspect.getcallargs(fn, *host_args, **host_kwargs)
    grid = tuple(executor.grid(bound) if callable(executor.grid) else executor.grid)
    _check_grid(fn.__name__, grid)
    grid += (1,) * (3 - len(grid))
    language.patch(fn)
    checks = Checks(strict.bounds, strict.races, strict.uninitialised)
    memory = builder.memory = Memory(fn.__name__, fn.__code__, checks, MACHINERY, strict.seed)
    records = _records(args, kwargs) if strict.uninitialised else {}
    types = {name: _SCALARS.get(_normalize_ty(t)) for name, t in fn.__annotations__.items()}
    arguments = {
        name: x
        if name in executor.constexprs
        else _argument(name, x, types.get(name), memory, records, strict.numerics)
        for name, x in bound.items()
    }
    programs = turns.programs(fn, grid, bound.values(), strict.seed if strict.shuffle else None)
    builder.set_grid_dim(*grid)
    # Overflow, NaN and infinity raise nothing on hardware.
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


def _check_warps(kernel: str, warps: Any) -> None:
    """Refuse a number of warps that no block can have; if none is given, Triton has a default."""
    if isinstance(warps, int) and warps not in _WARPS:
        raise Fault(f"{kernel}: num_warps is {warps}; it must be a power of 2 and at most 32")


def _check_grid(kernel: str, grid: tuple[int, ...]) -> None:
    """Refuse a grid that no GPU accepts."""
    if len(grid) > len(_MOST_PROGRAMS):
        raise Fault(f"{kernel}: a grid has at most 3 axes, this one is {grid}")
    for axis, (programs, most) in enumerate(zip(grid, _MOST_PROGRAMS, strict=False)):
        if programs > most:
            raise Fault(
                f"{kernel}: the grid {grid} has {programs} programs on axis {axis}; "
                f"a GPU takes {most} there"
            )


def _explained(error: Exception, memory: Memory) -> Exception:
    """Return an exception that a kernel's statement raised, with the place of the statement."""
    site = memory.site(error.__traceback__)
    if isinstance(error, NotImplementedError):
        return Unsupported(memory.located(str(error), site))
    if isinstance(error, StaticAssertion):
        return StaticAssertion(memory.located(f"static_assert: {error}", site))
    return memory.fault(f"{type(error).__name__}: {error}", site)


def _records(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, Record]:
    """Return the records of uninitialised memory among the arguments, by address."""
    found, rest = {}, [*args, *kwargs.values()]
    while rest:
        x = rest.pop()
        if isinstance(x, tuple):
            rest += x
        elif hasattr(x, "base"):  # a descriptor, or a tensor reinterpreted in another dtype
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


@contextlib.contextmanager
def installed(strict: Strictness) -> Iterator[None]:
    """Make the interpreter strict, and restore it at the end."""
    builder, language, turns = interpreter.interpreter_builder, Language(), Turns()
    semantic = interpreter.TritonSemantic
    plain_load = semantic.load
    plain_overflow = semantic.binary_op_sanitize_overflow_impl
    plain_atomic = semantic.atom_red_typechecking_impl
    plain_apply = interpreter.ReduceScanOpInterface.apply

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function is speed.PHILOX and (drawn := speed.philox(*args, **kwargs)):
            return drawn
        language.patch(function.fn)
        result = function.rewrite()(*args, **kwargs)
        if function in reductions.SORTS:
            reductions.keep_poison_sorted(result, *args, **kwargs)
        return result

    def run(executor: Any, *args: Any, **kwargs: Any) -> None:
        launch(executor, language, turns, args, kwargs)

    def overflow(self: Any, lhs: Any, rhs: Any, binary_op: Any) -> None:
        if self.builder is not builder:
            plain_overflow(self, lhs, rhs, binary_op)
        elif strict.overflow and lhs.type.scalar.int_bitwidth < 64:
            a, b = lhs.handle.data, rhs.handle.data
            if a.dtype.kind in "iu" and numerics.overflows(binary_op.__name__, a, b):
                raise builder.memory.fault(f"{lhs.type.scalar} overflow in {binary_op.__name__}")

    def load(self: Any, ptr: Any, mask: Any, other: Any, *how: Any, **more: Any) -> Any:
        # Triton tests `if other`, which is false for a single element of 0.
        builder.other_given = other is not None
        try:
            return plain_load(self, ptr, mask, other, *how, **more)
        finally:
            builder.other_given = False

    def atomic(self: Any, ptr: Any, val: Any, mask: Any, *how: Any) -> Any:
        # After this, a maximum or minimum of floats is one of integers.
        found = ptr, val, mask = plain_atomic(self, ptr, val, mask, *how)
        if self.builder is builder:
            builder.check_use("atomic", ptr.handle, val.handle, mask.handle.data)
        return found

    def apply(self: Any, input: Any) -> Any:
        if not isinstance(input, tuple):
            return apply(self, (input,))[0]
        return reductions.apply(plain_apply, self, input)

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
            (tl.core.block_type, "__init__", speed.new_type),
            (tl.core.tensor, "__init__", speed.new_tensor),
            (interpreter, "_get_np_dtype", speed.get_np_dtype),
            (interpreter.InterpretedFunction, "__call__", call),
            (interpreter.InterpretedFunction, "rewritten_fn", REWRITTEN),
            (interpreter.FunctionRewriter, "ast_transformer", Rewriting()),
            (interpreter.GridExecutor, "__call__", run),
            (interpreter.ReduceScanOpInterface, "apply", apply),
            (semantic, "load", load),
            (semantic, "atom_red_typechecking_impl", atomic),
            (interpreter.interpreter_semantic, Rewriting.LOOP, loop),
            (interpreter.interpreter_semantic, Rewriting.LINE, kernel_line),
            (interpreter.interpreter_semantic, Rewriting.REFUSED, refused),
            (interpreter.interpreter_semantic, Rewriting.GLOBAL, known_global),
            (interpreter.interpreter_semantic, Rewriting.DECIDED, decided),
            (interpreter.interpreter_semantic, Rewriting.JOINED, joined),
            (interpreter.interpreter_semantic, Rewriting.NEGATED, negated),
            (semantic, "binary_op_sanitize_overflow_impl", overflow),
            (torch.cuda.device, "__init__", _null_on_cpu(torch.cuda.device.__init__)),
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


def _null_on_cpu(plain: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """Return an `__init__` of `torch.cuda.device` that does nothing where tensors are on the CPU.

    Its documentation promises that for None, which launchers pass by `torch.cuda.device(
    x.device.index)`; without CUDA torch raises.
    """

    def made(self: Any, device: Any) -> None:
        plain(self, -1 if device is None or str(device).startswith("cpu") else device)

    return made


def _least_dot(builder: Any) -> Any:
    """Return NVIDIA's rule for the smallest shapes of `tl.dot`, if its compiler is installed.

    The interpreter's own rule accepts any, and so does AMD's.
    """
    try:
        from triton.backends.nvidia.compiler import min_dot_size
    except ImportError:
        return builder.codegen_fns["min_dot_size"]
    return min_dot_size(GPUTarget("cuda", 90, 32))
