"""Argument checks: one place for the words in which every operator refuses bad input.

A check reads shapes and dtypes, never a value that would mean waiting for a GPU, so it works for
NumPy arrays and torch tensors alike. `seed` and `offsets` read values that are in host memory;
`in_range` and `sequence_lengths` are for arrays that always are. Each operator's reference module
composes these into a `check…` function of its own; the kernel of the same name calls that function,
so both sides refuse the same input with the same words: the argument's name, what it was, and what
it must be.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

FLOATING = ("float16", "bfloat16", "float32", "float64")
NUMPY_FLOATING = tuple(name for name in FLOATING if name != "bfloat16")
LEAST, MOST = 1e-37, 1e37  # range of the positive numbers that kernels work with, in float32
INTEGER = ("int32", "int64")
MOST_HEAD_DIM = 512  # the largest that the kernels have tiles for
Into = Sequence[Any] | None  # arrays that gradients are written into, or None for new ones
_X = TypeVar("_X")


def dtype_name(x: Any) -> str:
    """Return the bare name of an array's dtype, such as ``"float32"``, for NumPy and torch."""
    return _name(x.dtype)


@functools.cache
def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def require(condition: bool, name: str, was: object, must: str) -> None:
    """Raise `ValueError` naming the argument, what it was and what it must be."""
    if not condition:
        raise ValueError(f"{name} is {was}; it must be {must}")


def whole(x: Any) -> bool:
    """Return whether `x` is an integer, of Python or NumPy, and not a bool."""
    return isinstance(x, int | Integral) and not isinstance(x, bool)


def flag(name: str, x: Any, *others: str) -> None:
    """Raise `TypeError` unless `x` is a bool, of Python or NumPy; the error names `others` too."""
    if not isinstance(x, bool | np.bool_):
        must = " or ".join(("a bool", *map(repr, others)))
        raise TypeError(f"{name} is a {type(x).__name__}; it must be {must}")


def flags(**given: Any) -> None:
    """Raise `TypeError` unless each is a bool."""
    for name, x in given.items():
        flag(name, x)


def count(name: str, x: Any, least: int) -> None:
    """Raise unless `x` is an integer and at least `least`."""
    if not whole(x):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be an int")
    require(x >= least, name, x, f"at least {least}")


def number(name: str, x: Any) -> None:
    """Raise unless `x` is a real number that a float holds, of Python or NumPy, and not a bool."""
    if not isinstance(x, float | Real) or isinstance(x, bool):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a number")
    if not isinstance(x, float):
        try:
            float(x)
        except OverflowError:
            require(False, name, "an int of more than 10**308", "at most that")


def positive(name: str, x: Any) -> None:
    """Raise unless `x` is a number above 0 that is neither 0 nor infinite in float32."""
    number(name, x)
    if not LEAST <= (x := float(x)) <= MOST:
        require(0.0 < x < math.inf, name, x, "positive" if x != math.inf else "finite")
        require(False, name, x, f"from {LEAST} to {MOST}")


def array(name: str, x: Any) -> None:
    """Raise `TypeError` unless `x` has a shape and a dtype (a NumPy array or a torch tensor)."""
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be an array")


def floating(**arrays: Any) -> None:
    """Raise unless all are floating arrays of one dtype on one device; None is skipped."""
    first = shared = ""
    for name, x in arrays.items():
        if x is None:
            continue
        array(name, x)
        found = dtype_name(x)
        if found not in FLOATING:
            raise TypeError(f"{name} has dtype {found}; it must be one of {', '.join(FLOATING)}")
        if not first:
            first, shared = name, found
        if found != shared:
            raise TypeError(
                f"{name} has dtype {found}; it must have the dtype of {first}, {shared}"
            )
    same_device(**arrays)


def integer(**arrays: Any) -> None:
    """Raise unless each is an int32 or int64 array; None is skipped."""
    for name, x in arrays.items():
        if x is None:
            continue
        array(name, x)
        if dtype_name(x) not in INTEGER:
            raise TypeError(f"{name} has dtype {dtype_name(x)}; it must be int32 or int64")


def boolean(**arrays: Any) -> None:
    """Raise unless each is a boolean array; None is skipped."""
    for name, x in arrays.items():
        if x is None:
            continue
        array(name, x)
        if dtype_name(x) != "bool":
            raise TypeError(f"{name} has dtype {dtype_name(x)}; it must be bool")


def dtype(name: str, x: Any, expected: str) -> None:
    """Raise `TypeError` unless `x` is an array whose dtype has this name."""
    array(name, x)
    if dtype_name(x) != expected:
        raise TypeError(f"{name} has dtype {dtype_name(x)}; it must be {expected}")


def floating_dtype(name: str, given: Any, known: tuple[str, ...] = FLOATING) -> str:
    """Return the name of the dtype given, or raise `ValueError` unless it is one of `known`."""
    bare = getattr(given, "__name__", str(given).removeprefix("torch."))
    found = given if isinstance(given, str) else str(bare)
    choice(name, found, known)
    return found


def numpy_dtype(name: str, given: Any) -> np.dtype[Any]:
    """Return NumPy's dtype for the one given; bfloat16 exists only if `ml_dtypes` was imported."""
    found = floating_dtype(name, given)
    try:
        return np.dtype(found)
    except TypeError:
        return np.dtype(floating_dtype(name, given, NUMPY_FLOATING))


def same_device(**arrays: Any) -> None:
    """Raise unless all arrays are on one device; None is skipped."""
    first, shared = "", None
    for name, x in arrays.items():
        if x is None:
            continue
        device = getattr(x, "device", "cpu")
        if not first:
            first, shared = name, device
        if device != shared:
            require(False, name, f"on {device}", f"on {first}'s device, {shared}")


def at_hand(x: Any) -> bool:
    """Return whether the values of an array can be read without waiting for a GPU."""
    device = getattr(x, "device", "cpu")
    return bool(getattr(device, "type", device) == "cpu")


def shape(name: str, x: Any, expected: tuple[int | str, ...]) -> None:
    """Raise unless `x.shape` is `expected`; a string stands for any length of at least 1.

    Lengths given as numbers must match exactly. ``shape("q", q, ("B", "H", "M", "D"))`` requires
    four dimensions, none of them empty.
    """
    if x is None:  # the checks of dtypes skip it
        array(name, x)
    found = tuple(x.shape)
    if len(found) == len(expected):
        for n, want in zip(found, expected, strict=True):
            if n < 1 if isinstance(want, str) else n != want:
                break
        else:
            return
    _refuse_shape(name, tuple(int(n) for n in found), expected)


def _refuse_shape(name: str, found: tuple[int, ...], expected: tuple[int | str, ...]) -> None:
    """Raise, saying what is wrong; separate, as the message takes longer than all the checks."""
    words = f"({', '.join(str(n) for n in expected)}{',' * (len(expected) == 1)})"
    require(
        len(found) == len(expected), f"{name}.shape", found, f"of rank {len(expected)}, {words}"
    )
    for n, want in zip(found, expected, strict=True):
        if isinstance(want, str):
            require(n >= 1, f"{name}.shape", found, f"{words} with no dimension empty")
        else:
            require(n == want, f"{name}.shape", found, words)


def head_dim(name: str, D: int) -> None:
    """Raise `ValueError` for heads with more features than the kernels have tiles for."""
    require(D <= MOST_HEAD_DIM, f"{name}.shape[-1]", D, f"at most {MOST_HEAD_DIM}")


def rows(name: str, x: Any) -> None:
    """Raise unless `x` has at least one row, and at least one element in each."""
    require(len(x.shape) >= 1, f"{name}.shape", tuple(x.shape), "of rank 1 or more")
    require(0 not in x.shape, f"{name}.shape", tuple(x.shape), "without an empty dimension")


def gradient(name: str, x: Any, expected: tuple[int | str, ...], dtype: Any = None) -> None:
    """Raise unless `x` is floating and has the expected shape and, if one is given, dtype."""
    floating(**{name: x})
    shape(name, x, expected)
    if dtype is not None and x.dtype != dtype:
        must = f"that of the output, {_name(dtype)}"
        raise TypeError(f"{name} has dtype {dtype_name(x)}; it must have {must}")


def into(given: Into, **shapes: tuple[int, ...] | None) -> tuple[Any, ...]:
    """Return the array that each named gradient is to be written into; None for a new one.

    Args:
        given: an array or None for each name, or None for all.
        shapes: of the gradients; None for a gradient that does not exist.

    Raises:
        TypeError, ValueError: `given` is something else.
    """
    if given is None:
        return (None,) * len(shapes)
    several = isinstance(given, tuple | list) and len(given) == len(shapes)
    was = f"a {type(given).__name__}" + (f" of {len(given)}" if hasattr(given, "__len__") else "")
    require(several, "into", was, f"({', '.join(shapes)}), or None")
    for (name, expected), x in zip(shapes.items(), given, strict=True):
        if x is not None:
            named = f"into's {name}"
            require(expected is not None, named, f"a {type(x).__name__}", "None: there is none")
            array(named, x)
            gradient(named, x, expected or ())
            writable(**{named: x})
    return tuple(given)


def kept(name: str, x: _X | None) -> _X:
    """Return what backward needs, or raise ValueError where forward was told not to keep it."""
    if x is None:
        raise ValueError(f"{name} is None; it must be kept, as forward does with keep=True")
    return x


def writable(**arrays: Any) -> None:
    """Raise unless NumPy can write to each; torch tensors always pass."""
    for name, x in arrays.items():
        flags = getattr(x, "flags", None)
        require(flags is None or flags.writeable, name, "read-only", "an array to be written to")


def expanded(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether several elements along an axis share one place in memory."""
    return 0 in strides and any(n > 1 and not s for n, s in zip(shape, strides, strict=True))


def offsets(name: str, x: Any, end: int, name_longest: str, longest: Any) -> None:
    """Raise unless `x`, int32 (S + 1,), is where sequences begin that fill `end` rows, and `end`.

    No sequence may have more rows than `longest`, an int. Values on a GPU are not read.
    """
    dtype(name, x, "int32")
    shape(name, x, ("S + 1",))
    require(int(x.shape[0]) > 1, f"{name}.shape", tuple(x.shape), "(S + 1,) of S ≥ 1 sequences")
    fits = whole(longest) and longest >= 1
    require(fits, name_longest, longest, f"an int ≥ 1 with {name}")
    if at_hand(x):
        starts = x.tolist()
        lengths = [after - before for before, after in itertools.pairwise(starts)]
        fits = starts[0] == 0 and starts[-1] == end and min(lengths) >= 0
        require(fits, name, starts, f"non-decreasing from 0 to {end}")
        require(max(lengths) <= longest, name_longest, longest, f"at least {max(lengths)}")


def broadcastable(name: str, x: Any, target: tuple[int, ...]) -> None:
    """Raise unless `x` broadcasts to `target` by NumPy's rules."""
    found = tuple(int(n) for n in x.shape)
    fits = len(found) <= len(target) and all(
        n in (1, want) for n, want in zip(reversed(found), reversed(target), strict=False)
    )
    require(fits, f"{name}.shape", found, f"broadcastable to {target}")


def probability(name: str, p: float) -> None:
    """Raise unless 0 ≤ p < 1."""
    number(name, p)
    require(0.0 <= p < 1.0, name, p, "at least 0 and below 1")


def seed(value: Any, x: Any = None) -> None:
    """Raise unless the seed is an integer that fits Philox's key as both sides pass it: 63 bits.

    If an array `x` is given, the seed may be a 0-d int64 array on its device, whose value is not
    read on a GPU.
    """
    if x is not None and hasattr(value, "shape") and not whole(value):
        dtype("seed", value, "int64")
        shape("seed", value, ())
        same_device(x=x, seed=value)
        if not at_hand(value):
            return
    elif not whole(value):
        raise TypeError(f"seed is a {type(value).__name__}; it must be an int")
    require(0 <= int(value) < 2**63, "seed", int(value), "at least 0 and below 2**63")


def choice(name: str, value: object, options: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `options`."""
    if value not in options:
        must = "one of " + ", ".join(repr(o) for o in options)
        require(False, name, repr(value), must)


def in_range(name: str, ids: Any, rows: int) -> None:
    """Raise `IndexError`, naming the place, unless every id is at least 0 and below `rows`."""
    if ids.min() < 0 or ids.max() >= rows:
        place = np.argwhere((ids < 0) | (ids >= rows))[0]
        named = f"{name}{place.tolist()}" if len(place) else name
        was = ids[tuple(place)]
        raise IndexError(f"{named} is {was}; it must be at least 0 and below {rows}")


def sequence_lengths(lengths: Any, longest: int, named: str) -> None:
    """Raise `ValueError` unless all lengths are from 1 to `longest`, which errors call `named`."""
    fits = bool((lengths >= 1).all() and (lengths <= longest).all())
    must = f"at least 1 and at most {named}, {longest}, everywhere"
    require(fits, "lengths", lengths.tolist(), must)
