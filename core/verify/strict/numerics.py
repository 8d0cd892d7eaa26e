"""What the hardware computes where Triton's interpreter computes something else, on NumPy arrays.

bfloat16 is held as the bits of a uint16 array, as in the interpreter, and float8_e4m3fn as those of
a uint8 array. Products on the matrix unit are taken in float32, where those of float8, float16,
bfloat16 and tf32 operands are exact, and summed there. The unit's truncated sums are not simulated:
a bound has to allow for them (`machines.Machine.u_sum`).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_DROPPED = np.uint32(0x1FFF)  # the 13 bits of a float32 that tf32 lacks
_HALF = np.uint32(0x1000)
# A quiet NaN and the upper six bits of its payload, 010101: all that bfloat16 has of one. No
# operation makes it from anything else, and x86 passes the payload on.
_POISONS: dict[np.dtype[Any], Array] = {
    np.dtype(np.uint16): np.array([0x7FD5], np.uint16),  # bfloat16
    np.dtype(np.float16): np.array([0x7EA8], np.uint16),
    np.dtype(np.float32): np.array([0x7FD50000], np.uint32),
    np.dtype(np.float64): np.array([0x7FFAA00000000000], np.uint64),
}
_POISON_MASKS: dict[np.dtype[Any], Any] = {
    np.dtype(np.uint16): np.uint16(0x7FFF),
    np.dtype(np.float16): np.uint16(0x7FF8),
    np.dtype(np.float32): np.uint32(0x7FFF0000),
    np.dtype(np.float64): np.uint64(0x7FFFE00000000000),
}


def from_bfloat16(bits: Array) -> Array:
    """Return the float32 numbers that bfloat16 bits stand for: exact."""
    return np.asarray(bits.view(ml_dtypes.bfloat16), np.float32)


def to_bfloat16(x: Array) -> Array:
    """Round to bfloat16, to nearest and ties to even, and return the bits."""
    bits: Array = np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)
    return bits


def from_e4m3(bits: Array) -> Array:
    """Return the float32 numbers that bits of float8_e4m3fn stand for: exact."""
    return np.asarray(bits.view(ml_dtypes.float8_e4m3fn), np.float32)


def to_e4m3(x: Array) -> Array:
    """Round to float8_e4m3fn, to nearest and ties to even, and return the bits.

    What is too large becomes NaN, as in torch, although NVIDIA's cast saturates at ±448, so that
    nothing relies on that.
    """
    bits: Array = np.asarray(x, np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return bits


def toward_zero(rounded: Array, x: Array) -> Array:
    """Turn `x` rounded to nearest into `x` rounded toward zero.

    `rounded` has a float dtype, or uint16 holding bfloat16. The bits of a float, as an integer,
    increase with its magnitude, so where rounding went away from zero, one less is the neighbour.
    """
    value = from_bfloat16(rounded) if rounded.dtype == np.uint16 else rounded
    bits = rounded.view(f"u{rounded.dtype.itemsize}")
    away = (np.abs(value.astype(x.dtype)) > np.abs(x)).astype(bits.dtype)
    return np.asarray(bits - away).view(rounded.dtype)


def truncated_tf32(x: Array) -> Array:
    """Truncate float32 to tf32's 11 significant bits, as the matrix unit reads its operands."""
    return (np.ascontiguousarray(x).view(np.uint32) & ~_DROPPED).view(np.float32)


def nearest_tf32(x: Array) -> Array:
    """Round float32 to the nearest tf32 number, ties away from zero (`cvt.rna.tf32.f32`)."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return np.where(np.isfinite(x), (bits + _HALF) & ~_DROPPED, bits).view(np.float32)


def dot(a: Array, b: Array, c: Array, precision: str) -> Array:
    """Return a·b + c on the matrix unit; a and b are float32 arrays of their own dtype's numbers.

    `precision` is "ieee" (also for operands of 8 and 16 bits, whose products are exact), "tf32", or
    "tf32x3": each operand is split into the nearest tf32 number and a remainder, and three
    products are summed, the small ones first; remainder times remainder is dropped. Where the
    small ones are not finite, the large one decides, as in Triton's own decomposition.
    """
    if precision == "tf32":
        return np.asarray(np.matmul(truncated_tf32(a), truncated_tf32(b)) + c)
    if precision == "tf32x3":
        a_large, b_large = nearest_tf32(a), nearest_tf32(b)
        a_small, b_small = truncated_tf32(a - a_large), truncated_tf32(b - b_large)
        small = np.matmul(a_small, b_large) + np.matmul(a_large, b_small)
        small = np.where(np.isfinite(small), small, np.float32(0))
        return np.asarray((small + np.matmul(a_large, b_large)) + c)
    return np.asarray(np.matmul(a, b) + c)


def poison(dtype: np.dtype[Any], is_bfloat16: bool) -> Any:
    """Return what an unspecified element holds: a NaN, the largest integer, or True.

    The NaN has a payload of its own, which survives arithmetic and casts: `is_poison` finds it.
    """
    if is_bfloat16 or dtype.kind == "f":
        return _POISONS[dtype].view(dtype)[0]
    return True if dtype.kind == "b" else np.iinfo(dtype).max


def is_poison(x: Array) -> Array:
    """Return which elements of a float array, or of bfloat16 bits, were computed from `poison`."""
    bits = _POISONS[x.dtype]
    return np.asarray((x.view(bits.dtype) & _POISON_MASKS[x.dtype]) == bits)


def keep_poison(result: Array, *operands: Array) -> Array:
    """Put poison into a float result where an operand has it."""
    for x in operands:
        if (found := is_poison(x)).any():
            result = np.where(found, poison(result.dtype, result.dtype == np.uint16), result)
    return result


def no_opposite(x: Array) -> Array:
    """Return which integers have no negative in their dtype: the smallest of a signed one."""
    if x.dtype.kind != "i":
        return np.zeros(x.shape, bool)
    return np.asarray(x == np.iinfo(x.dtype).min)


def no_quotient(a: Array, b: Array) -> Array:
    """Return where integers cannot be divided: a/b is infinite, or does not fit."""
    return np.asarray((b == 0) | (no_opposite(a) & (b == -1)))


def sum_overflows(x: Array, sums: Array) -> bool:
    """Return whether integer sums, taken in 64 bits, overflow the dtype of their operand."""
    if x.dtype.itemsize == 8 or not sums.size:
        return False
    limits = np.iinfo(x.dtype)
    return bool(int(sums.min()) < limits.min or int(sums.max()) > limits.max)


def overflows(operation: str, a: Array, b: Array) -> bool:
    """Return whether an integer sum, difference or product overflows its dtype in any element."""
    if not a.size:
        return False
    limits = np.iinfo(a.dtype)
    low_a, high_a, low_b, high_b = int(a.min()), int(a.max()), int(b.min()), int(b.max())
    if operation == "add":
        low, high = low_a + low_b, high_a + high_b
    elif operation == "sub":
        low, high = low_a - high_b, high_a - low_b
    else:
        corners = (low_a * low_b, low_a * high_b, high_a * low_b, high_a * high_b)
        low, high = min(corners), max(corners)
    if limits.min <= low and high <= limits.max:
        return False
    wide = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation](
        a.astype(object), b.astype(object)
    )
    return bool((wide < limits.min).any() or (wide > limits.max).any())
