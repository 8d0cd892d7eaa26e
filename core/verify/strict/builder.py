"""The operations of Triton's interpreter, strict: what a kernel's statements come down to.

`launch` puts this in the place of Triton's builder. Triton is imported here, and it reads
TRITON_INTERPRET when it is: `strict_interpreter` imports this file no earlier than it is used.
"""

# ruff: noqa: D102  (the builder's methods are Triton's, and do what theirs do)

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from twofold.core.verify.strict import numerics
from twofold.core.verify.strict.memory import Array, Memory, untagged
from twofold.core.verify.strict.order import Clock

_FLOATS = (tl.float16, tl.bfloat16, tl.float32, tl.float64)
_PASSING_OVER = (np.fmax, np.fmin)  # NaN

WAITS = "waits for another program; here one runs after the other"


@dataclass(frozen=True)
class Strictness:
    """What to check; see `strict_interpreter`."""

    numerics: bool
    bounds: bool
    poison: bool
    uninitialised: bool
    races: bool
    overflow: bool
    shuffle: bool
    seed: int


class Found(TensorHandle):  # type: ignore[misc]  # Triton has no types
    """What an atomic found, which orders nothing before it is looked at."""

    def __init__(self, data: Array, dtype: Any, look: Callable[[], None]) -> None:
        self._look: Callable[[], None] | None = None
        super().__init__(data, dtype)
        self._look = look

    @property
    def data(self) -> Array:
        """The numbers, by looking at them."""
        look, self._look = self._look, None
        if look is not None:
            look()
        return self._numbers

    @data.setter
    def data(self, numbers: Array) -> None:
        self._numbers = numbers


class StrictBuilder(InterpreterBuilder):  # type: ignore[misc]  # Triton has no types
    """The interpreter's operations, strict. Triton's one builder becomes one; none is made."""

    strict: Strictness
    memory: Memory
    other_given: bool  # to the load that is going on
    kind: str  # of the accesses that are going on, "" for what they are by themselves

    def __getattr__(self, name: str) -> Any:
        if name.startswith("create_"):
            raise NotImplementedError(f"Triton {triton.__version__}'s interpreter has no {name}")
        raise AttributeError(f"the interpreter's builder has no {name!r}")

    # memory

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *how: Any, **more: Any) -> Any:
        live = _data(mask)
        addresses = self.memory.access(self.kind or "load", ptrs.data, live, _size(ptrs))
        if other is None and self.strict.poison and not self.other_given and not live.all():
            dtype = ptrs.get_element_ty()
            numpy_dtype = interpreter._get_np_dtype(dtype)
            value = numerics.poison(numpy_dtype, dtype == tl.bfloat16)
            other = TensorHandle(np.full(ptrs.data.shape, value, numpy_dtype), dtype)
            if dtype in _FLOATS:
                self.memory.leave_unspecified(ptrs.data)
        ptrs = TensorHandle(addresses, ptrs.dtype)
        return super().create_masked_load(ptrs, mask, other, *how, **more)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *how: Any, **more: Any) -> Any:
        live, kind = _data(mask), self.kind or "store"
        addresses = self.memory.access(kind, ptrs.data, live, _size(ptrs))
        self.check_use(kind, ptrs, value, live)
        plain = TensorHandle(addresses, ptrs.dtype)
        result = super().create_masked_store(plain, value, mask, *how, **more)
        if self.strict.races:
            # A lane that reads back another value than it wrote shared its address.
            written = np.ascontiguousarray(np.broadcast_to(value.data, addresses.shape))
            found = interpreter._interpreter.load(addresses, live, written, written.dtype)
            bits = f"u{written.dtype.itemsize}"
            if (differ := found.view(bits) != written.view(bits)).any():
                raise self.memory.disagreement(ptrs.data[differ])
        return result

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, *how: Any) -> Any:
        live = _data(mask)
        addresses = self.memory.access("atomic", ptr.data, live, _size(ptr))
        if val.dtype.scalar == tl.bfloat16:
            raise NotImplementedError("Triton's interpreter has no atomics on bfloat16")
        plain, atomic = TensorHandle(addresses, ptr.dtype), super().create_atomic_rmw
        if addresses.size > 1 or not live.all():
            return atomic(op, plain, val, mask, *how)
        exchanges = "xchg" in str(op).lower()
        if exchanges and self._bits(plain) != val.data.tobytes() and self._held(plain):
            return TensorHandle(val.data.copy(), val.dtype.scalar)
        if exchanges and self.memory.order.denied(int(addresses.item()), val.data.tobytes()):
            raise self.memory.put_back(ptr.data)
        return self._ordering(plain, how, lambda: atomic(op, plain, val, mask, *how), exchanges)

    def create_atomic_cas(self, ptr: Any, compared: Any, val: Any, *how: Any) -> Any:
        everywhere = np.ones(ptr.data.shape, bool)
        addresses = self.memory.access("atomic", ptr.data, everywhere, _size(ptr))
        plain, atomic = TensorHandle(addresses, ptr.dtype), super().create_atomic_cas
        if addresses.size > 1:
            return atomic(plain, compared, val, *how)
        fits = self._bits(plain) == compared.data.tobytes()
        if fits and compared.data.tobytes() != val.data.tobytes() and self._held(plain):
            return TensorHandle(val.data.copy(), compared.dtype.scalar)
        exchange = lambda: atomic(plain, compared, val, *how)  # noqa: E731
        return self._ordering(plain, how, exchange, True, in_vain=not fits)

    def _held(self, ptr: Any) -> bool:
        """Return whether a lock is to be found held."""
        return self.strict.races and self.memory.order.held(int(ptr.data.item()))

    def _ordering(
        self,
        ptr: Any,
        how: tuple[Any, ...],
        atomic: Callable[[], Any],
        exchanges: bool,
        in_vain: bool = False,
    ) -> Any:
        """Run an atomic of one lane, by which accesses of several programs may be ordered."""
        order, address, before = self.memory.order, int(ptr.data.item()), self._bits(ptr)
        published, found = order.published(address), atomic()
        after = self._bits(ptr)
        if exchanges:
            order.exchanged(address, before, after)
        if not in_vain:
            self._released(address, how)
        return self._asked(found, address, how, published, before != after)

    def _released(self, address: int, how: tuple[Any, ...]) -> None:
        """Let what the program has done be relied on, where an atomic says so."""
        semantic, scope = (x.name for x in how)
        if "RELEASE" in semantic and scope != "CTA":
            self.memory.release(address)

    def _asked(
        self, found: Any, address: int, how: tuple[Any, ...], published: Clock, changed: bool
    ) -> Any:
        """Return what an atomic found, which orders what comes after its being looked at."""
        semantic, scope = (x.name for x in how)

        def look() -> None:
            if "ACQUIRE" in semantic and scope != "CTA":
                self.memory.acquire(published)
            if self.memory.order.spins(address, changed):
                raise NotImplementedError(WAITS)

        return Found(found.data, found.dtype, look)

    def _bits(self, ptr: Any) -> bytes:
        """Return what lies at one address."""
        dtype = interpreter._get_np_dtype(ptr.get_element_ty())
        one = np.zeros(ptr.data.shape, dtype)
        live = np.ones(ptr.data.shape, bool)
        return bytes(interpreter._interpreter.load(ptr.data, live, one, one.dtype).tobytes())

    def _of_one_lane(self, ptr: Any) -> tuple[bool, int, Clock]:
        """Return whether it is an access of one lane, and to which address, with its clock."""
        alone = ptr.data.size == 1
        address = int(untagged(ptr.data).item()) if alone else 0
        return alone, address, self.memory.order.published(address)

    def create_atomic_load(self, ptr: Any, mask: Any, *how: Any) -> Any:
        alone, address, published = self._of_one_lane(ptr)
        with self._as_atomic():
            found = super().create_atomic_load(ptr, mask, *how)
        return self._asked(found, address, how, published, False) if alone else found

    def create_atomic_store(self, ptr: Any, val: Any, mask: Any, *how: Any) -> Any:
        with self._as_atomic():
            found = super().create_atomic_store(ptr, val, mask, *how)
        if ptr.data.size == 1:
            self._released(int(untagged(ptr.data).item()), how)
        return found

    def create_atomic_poll(self, ptr: Any, expected: Any, timeout_ns: Any, *how: Any) -> Any:
        alone, address, published = self._of_one_lane(ptr)
        with self._as_atomic():
            found = self.create_load(ptr, None, True)
        met, ends = np.asarray(found.data == expected.data), isinstance(timeout_ns, TensorHandle)
        if not ends and not met.all():
            raise NotImplementedError(WAITS)
        asked = TensorHandle(met, tl.int1)
        if alone:
            asked = self._asked(asked, address, how, published, False)
            asked = asked if ends else TensorHandle(asked.data, tl.int1)  # it has waited
        return asked

    def create_barrier(self, *how: Any) -> None:
        self.memory.barrier()

    @contextlib.contextmanager
    def _as_atomic(self) -> Iterator[None]:
        """Let loads and stores count as atomics."""
        self.kind = "atomic"
        try:
            yield
        finally:
            self.kind = ""

    def check_use(self, kind: str, ptrs: Any, value: Any, live: Array) -> None:
        """Refuse to store what came from masked lanes of a load."""
        if self.memory.unspecified and value.dtype.scalar in _FLOATS:
            used = numerics.is_poison(np.broadcast_to(value.data, ptrs.data.shape)) & live
            if used.any():
                raise self.memory.use(kind, ptrs.data[used], int(used.sum()))

    def create_ptr_to_int(self, src: Any, dst_type: Any) -> Any:
        return TensorHandle(untagged(src.data).view(np.int64), dst_type.scalar)

    # arithmetic

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if self.strict.poison and source in _FLOATS and target.is_int():
            return self._float_to_int(src, source, target)
        if not self.strict.numerics or tl.bfloat16 not in (source, target) or source == target:
            return super().cast_impl(src, dst_type)
        data = numerics.from_bfloat16(src.data) if source == tl.bfloat16 else src.data
        if target != tl.bfloat16:
            return TensorHandle(data.astype(interpreter._get_np_dtype(target)), target)
        bits = numerics.to_bfloat16(data)
        if source in _FLOATS:
            bits = self._keep_poison(bits, data)
        return TensorHandle(bits, target)

    def _float_to_int(self, src: Any, source: Any, target: Any) -> Any:
        """Truncate; what the integer cannot hold is unspecified."""
        x = numerics.from_bfloat16(src.data) if source == tl.bfloat16 else src.data
        dtype = interpreter._get_np_dtype(target)
        whole = np.trunc(x).astype(np.float64)
        result = whole.astype(dtype)
        if dtype.kind != "b":
            limits = np.iinfo(dtype)
            inside = (whole >= float(limits.min)) & (whole < float(limits.max) + 1)
            result = np.where(inside, result, numerics.poison(dtype, False))
        return TensorHandle(result, target)

    def create_splat(self, ret_ty: Any, arg: Any) -> Any:
        """Spread a number; a comparison is a flag, not what it compared, as Triton has it."""
        if arg.data.dtype == np.bool_:
            arg = TensorHandle(arg.data, tl.int1)
        return super().create_splat(ret_ty, arg)

    def create_idiv(self, lhs: Any, rhs: Any) -> Any:
        return self._undefined(
            super().create_idiv, lhs, rhs, where=numerics.no_quotient(lhs.data, rhs.data)
        )

    def create_srem(self, lhs: Any, rhs: Any) -> Any:
        return self._undefined(
            super().create_srem, lhs, rhs, where=numerics.no_quotient(lhs.data, rhs.data)
        )

    def create_urem(self, lhs: Any, rhs: Any) -> Any:
        return self._undefined(super().create_urem, lhs, rhs, where=rhs.data == 0)

    def create_iabs(self, arg: Any) -> Any:
        return self._undefined(super().create_iabs, arg, where=numerics.no_opposite(arg.data))

    def create_shl(self, lhs: Any, rhs: Any) -> Any:
        return self._undefined(super().create_shl, lhs, rhs, where=_too_far(lhs, rhs))

    def create_lshr(self, lhs: Any, rhs: Any) -> Any:
        return self._undefined(super().create_lshr, lhs, rhs, where=_too_far(lhs, rhs))

    def create_ashr(self, lhs: Any, rhs: Any) -> Any:
        return self._undefined(super().create_ashr, lhs, rhs, where=_too_far(lhs, rhs))

    def _undefined(self, operation: Callable[..., Any], *operands: Any, where: Array) -> Any:
        """Apply an operation on integers; where it is not defined the result is unspecified."""
        result = operation(*operands)
        if self.strict.poison and where.any() and result.data.dtype.kind in "iu":
            value = numerics.poison(result.data.dtype, False)
            return TensorHandle(np.where(where, value, result.data), result.dtype)
        return result

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        source, target = src.dtype.scalar, dst_type.scalar
        if self.strict.numerics and tl.float8e4nv in (source, target):
            return self._with_e4m3(src, target)
        if not self.strict.numerics or source not in _FLOATS or target not in _FLOATS:
            return super().create_fp_to_fp(src, dst_type, rounding_mode)
        result = self.cast_impl(src, dst_type)
        if rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ:
            wide = self.cast_impl(src, tl.float64).data
            result = TensorHandle(numerics.toward_zero(result.data, wide), target)
        return result

    def _with_e4m3(self, src: Any, target: Any) -> Any:
        """Cast; from or to float8_e4m3fn by way of float32, which holds it exactly."""
        if src.dtype.scalar == tl.float8e4nv:
            src = TensorHandle(numerics.from_e4m3(src.data), tl.float32)
        if target != tl.float8e4nv:
            return self.cast_impl(src, target)
        wide = self.cast_impl(src, tl.float32).data
        return TensorHandle(numerics.to_e4m3(wide), target)

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, *how: Any) -> Any:
        kinds = {a.dtype.scalar, b.dtype.scalar}
        known = {tl.float8e4nv, tl.float16, tl.bfloat16, tl.float32}
        if not self.strict.numerics or not kinds <= known:
            return super().create_dot(a, b, d, input_precision, *how)
        x, y = (self._with_e4m3(operand, tl.float32).data for operand in (a, b))
        precision = input_precision.name.lower() if kinds == {tl.float32} else "ieee"
        result = numerics.dot(x, y, d.data, precision)
        return TensorHandle(result.astype(d.data.dtype, copy=False), d.dtype.scalar)

    def get_bf16(self, value: Any) -> Any:
        return TensorHandle(numerics.to_bfloat16(np.array([value])), tl.bfloat16)

    def create_gather(self, src: Any, indices: Any, axis: int) -> Any:
        length = src.data.shape[axis]
        outside = (indices.data < 0) | (indices.data >= length)
        if outside.any():
            found = int(indices.data[outside][0])
            raise self.memory.fault(f"gather: index {found} is outside an axis of {length}")
        return super().create_gather(src, indices, axis)

    def unary_op(self, arg: Any, op: Any) -> Any:
        result = self._in_float32(super().unary_op, (arg,), op)
        if arg.dtype.scalar in _FLOATS:
            result.data = self._keep_poison(result.data, arg.data)  # exp and log drop it
        return result

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        result = self._in_float32(super().binary_op, (lhs, rhs), op)
        if op in _PASSING_OVER and lhs.dtype.scalar in _FLOATS:
            result.data = self._keep_poison(result.data, lhs.data, rhs.data)
        return result

    def _keep_poison(self, result: Array, *operands: Array) -> Array:
        """Give a result of floats poison where an operand has it."""
        if not self.memory.unspecified:
            return result
        return numerics.keep_poison(result, *operands)

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
        if operands[-1].dtype.scalar.is_fp8():
            raise NotImplementedError("Triton's interpreter has no arithmetic in 8 bits")
        if operands[-1].dtype.scalar != tl.bfloat16 or not self.strict.numerics:
            return operation(*operands, *op)
        result = operation(*(self.cast_impl(x, tl.float32) for x in operands), *op)
        if result.data.dtype.kind == "f":
            return self.cast_impl(result, tl.bfloat16)
        return TensorHandle(result.data, tl.bfloat16)  # a comparison


def _data(mask: Any) -> Array:
    return np.asarray(mask.data if isinstance(mask, TensorHandle) else mask)


def _too_far(shifted: Any, by: Any) -> Array:
    width = shifted.dtype.scalar.primitive_bitwidth
    return np.asarray((by.data < 0) | (by.data >= width))


def _size(pointer: Any) -> int:
    return max(1, int(pointer.get_element_ty().primitive_bitwidth) // 8)
