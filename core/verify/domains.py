"""The inputs that operators are tried on: lengths, magnitudes, memory layouts, dtypes.

Hypothesis draws a small description of a case (numbers and names, which print and shrink well); the
arrays are then made from it by the functions below, so a printed case is a reproduced case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = ("float32", "float16", "bfloat16")
# Those of matrix products: a dtype, and whether they may be in tf32.
PRECISIONS = (("float32", False), ("float32", True), ("float16", False), ("bfloat16", False))
OWN = ("contiguous", "transposed", "padded", "strided")
MIXED = "each its own"  # every array of a call has a layout of its own
LAYOUTS = (*OWN, MIXED)
EXPANDED = "expanded"  # not drawn: what is constant has strides of 0, as gradients of a sum do
PADDING = 3  # elements after a row
# Not drawn: the axis whose elements lie 2³⁰ apart, so that the offsets of three pass 2³¹.
FAR = {"far batches": 0, "far heads": 1, "far rows": -2}
# How many axes an array needs for a layout; the contiguous one is never made.
AXES = {"contiguous": np.inf, "transposed": 2, "padded": 2, "strided": 1} | dict.fromkeys(FAR, 2)
AXES |= {EXPANDED: 1, "heads inside": 4}
STRIDE = 2**30
BIG = 2**30
INTO = ("", "", "own", "float32")  # a case's `into`: see `receivers`
MAGNITUDES = (
    "unit",
    "large",
    "huge",
    "tiny",
    "mixed rows",
    "mixed columns",
    "outliers",
    "constant",
    "offset",
    "near-duplicate",
    "zeros",
)
# "huge": in float16 near the largest, elsewhere so large that float32 can just hold its square.
HUGE = {"float16": 1e4, "bfloat16": 1e15, "float32": 1e15, "float64": 1e15}
# Spacing of the numbers above 1, in which "near-duplicate" rows differ.
SPACING = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def lengths(largest: int) -> st.SearchStrategy[int]:
    """Lengths from 1 to `largest`: ones, primes, and powers of two with both neighbours."""
    primes = [n for n in range(2, largest + 1) if all(n % d for d in range(2, int(n**0.5) + 1))]
    powers = [2**e + d for e in range(1, largest.bit_length() + 1) for d in (-1, 0, 1)]
    return st.sampled_from(sorted({1, *primes, *(n for n in powers if 1 <= n <= largest)}))


def seeds() -> st.SearchStrategy[int]:
    """Seeds of 63 bits: small ones, and ones whose high key word is in use."""
    return st.one_of(st.integers(0, 3), st.integers(0, 2**63 - 1))


def values(
    rng: np.random.Generator, shape: tuple[int, ...], magnitude: str, dtype: str = "float32"
) -> Array:
    """Draw a float64 array of `shape` in one of the `MAGNITUDES`, meant for `dtype`.

    "mixed rows" and "mixed columns" spread over decades along the first and the last axis,
    "outliers" makes one element in a hundred 50 times larger, "offset" adds 1000 to a unit normal,
    and the rows of "near-duplicate" differ in the last two bits or so of their elements.
    """
    x = rng.standard_normal(shape)
    if magnitude == "large":
        x *= 100.0
    elif magnitude == "huge":
        x *= HUGE[dtype]
    elif magnitude == "tiny":
        x *= 1e-3
    elif magnitude == "mixed rows":
        x *= 10.0 ** rng.uniform(-3, 1.5, (*shape[:-1], 1))
    elif magnitude == "mixed columns":
        x *= 10.0 ** rng.uniform(-3, 1.5, shape[-1:])
    elif magnitude == "outliers":
        x[rng.random(shape) < 0.01] *= 50.0
    elif magnitude == "constant":
        x[...] = rng.standard_normal()
    elif magnitude == "offset":
        x += 1000.0
    elif magnitude == "near-duplicate":
        one = x[..., :1, :] if x.ndim > 1 else x[:1]
        x = one * (1 + 2 * SPACING[dtype] * x)
    elif magnitude == "zeros":
        x[...] = 0.0
    elif magnitude != "unit":
        raise ValueError(f"magnitude is {magnitude!r}; it must be one of {', '.join(MAGNITUDES)}")
    return x


def representable(x: Array, dtype: str) -> Array:
    """Round float64 numbers to the nearest that `dtype` holds, and return them as float64."""
    if dtype == "bfloat16":
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16).astype(np.float64)
    return x.astype(dtype).astype(np.float64)


def draw(rng: np.random.Generator, shape: tuple[int, ...], magnitude: str, dtype: str) -> Array:
    """Draw float64 numbers that `dtype` holds exactly, in one of the `MAGNITUDES`."""
    return representable(values(rng, shape, magnitude, dtype), dtype)


def place(side: Side, x: Array | None, dtype: str | None, layout: str = "contiguous") -> Any:
    """Return `x` on a side in a memory layout, with NaN in the memory that is not part of it.

    "transposed" has the last two axes swapped in memory, "padded" rows longer than their content,
    "strided" every second element. Arrays with too few axes for a layout stay contiguous. Those of
    `FAR` are for tensors on a CPU, and the rest of their memory is 0; writes there go unnoticed.
    A dtype without NaN gets a large integer or True instead. None stays None.
    """
    if x is None:
        return None
    layout = own(x) if layout == MIXED else layout
    if layout not in AXES:
        known = ", ".join((*AXES, MIXED))
        raise ValueError(f"layout is {layout!r}; it must be one of {known}")
    if x.ndim < AXES[layout]:
        return side.asarray(x, dtype)
    if layout == EXPANDED:
        if x.size == 0 or np.any(x != x.flat[0]):
            return side.asarray(x, dtype)
        one = side.asarray(x.flat[:1].reshape((1,) * x.ndim), dtype)
        return one.expand(x.shape) if hasattr(one, "expand") else np.broadcast_to(one, x.shape)
    if layout in FAR:
        return far(side.asarray(x, dtype), FAR[layout])
    filling = {"f": np.nan, "b": True}.get(x.dtype.kind, BIG)
    memory = np.full(_memory(x.shape, layout), filling, x.dtype)
    _part(memory, layout)[...] = x
    return _part(side.asarray(memory, dtype), layout)


def own(x: Array, layouts: Sequence[str] = OWN) -> str:
    """Return the layout of an array where each has its own: its content decides which."""
    return layouts[crc32(np.ascontiguousarray(x).tobytes()) % len(layouts)]


def in_one_layout(case: Any) -> Any:
    """Return the case, contiguous where every array has its own layout.

    Otherwise an array's content decides its layout, on which bits may depend.
    """
    mixed = getattr(case, "layout", "") == MIXED
    return replace(case, layout="contiguous") if mixed else case


def room(side: Side, shape: tuple[int, ...], dtype: str, layout: str, name: str = "") -> Any:
    """Return an array to be written, in one of the memory layouts of `place`."""
    layout = own(np.array([*shape, *name.encode()])) if layout == MIXED else layout
    if layout == EXPANDED or len(shape) < AXES[layout]:
        return side.empty(shape, dtype)
    return _part(side.empty(_memory(shape, layout), dtype), layout)


def _memory(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Return the shape of the memory that an array takes in a layout."""
    *lead, last = shape
    if layout == "heads inside":
        return (*lead[:-2], lead[-1], lead[-2], last)
    if layout == "transposed":
        return (*lead[:-1], last, lead[-1])
    return (*lead, last + PADDING if layout == "padded" else 2 * last)


def _part(memory: Any, layout: str) -> Any:
    """Return the part of the memory that is the array, in a layout."""
    if layout == "heads inside":
        return memory.swapaxes(-2, -3)
    if layout == "transposed":
        return memory.swapaxes(-1, -2)
    return memory[..., :-PADDING] if layout == "padded" else memory[..., ::2]


def beside(side: Side, x: Array | None, case: Any, dtype: str | None = None) -> Any:
    """Return a smaller argument of a call on a side, strided if the case's tensors are."""
    if x is None:
        return None
    layout = own(x, ("strided", "contiguous")) if case.layout == MIXED else case.layout
    return place(side, x, dtype, layout if layout == "strided" else "contiguous")


def tile(operator: Any, case: Any) -> dict[str, Any]:
    """Return the argument `tile` for an operator of a side, if the case names an entry."""
    return {} if case.tile is None else {"tile": operator.TILES[case.tile][1]}


def entry(side: Side, case: Any, entries: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """Return the argument `tile` of kernels, if the case has one of their table's entries."""
    return {} if side.name == "reference" or case.tile is None else {"tile": entries[case.tile][1]}


def between(case: Any, x: Any) -> Any:
    """Return an intermediate `Approx`, cast to the case's dtype for functions that store it so."""
    return x.stored() if case.rounded else x


def kept(case: Any) -> dict[str, Any]:
    """Return forward's argument `keep`; none if all is kept, as other functions may not take it."""
    return {} if case.keep else {"keep": False}


def holds_features(key: tuple[Any, int], case: Any) -> bool:
    """Return whether the tiles of a key, (…, head_dim), are for as many features as a case has."""
    return key[1] >= int(case.head_dim)


def receivers(side: Side, case: Any, **shapes: tuple[int, ...] | None) -> dict[str, Any]:
    """Return the arrays that backward is to write gradients into, in the case's layout.

    There are none where `case.into` is empty, and None where a shape is None; "own" means the
    case's dtype, which NumPy's arrays have too: only kernels write their sums in another dtype.
    """
    if not case.into:
        return {}
    dtype = case.dtype if case.into == "own" or side.name == "reference" else case.into
    return {
        name: None if shape is None else room(side, shape, dtype, case.layout, name)
        for name, shape in shapes.items()
    }


def into(written: dict[str, Any]) -> dict[str, Any]:
    """Return the argument `into` for backward, if there are `receivers`."""
    return {"into": tuple(written.values())} if written else {}


def received(case: Any) -> str | None:
    """Return the dtype of what backward writes gradients into, None where it is the case's."""
    return None if case.into in ("", "own") else str(case.into)


def returned(case: Any, outputs: Mapping[str, Any], *parameters: str) -> dict[str, Any]:
    """Return the outputs as cast, those of `parameters` to the dtype of their receivers."""
    dtypes = dict.fromkeys(parameters, received(case))
    return {name: x.returned(dtypes.get(name)) for name, x in outputs.items()}


def far(x: Any, axis: int) -> Any:
    """Return a copy of a tensor whose elements along an axis lie 2³⁰ apart.

    Only the pages that are touched take memory: NumPy's zeros are lazy, torch's need not be.
    """
    import torch

    shape, strides = tuple(x.shape), [0] * x.ndim
    strides[axis], step = STRIDE, 1
    for i in reversed(range(x.ndim)):
        if i != axis % x.ndim:
            strides[i], step = step, step * shape[i]
    elements = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = torch.from_numpy(np.zeros(elements * x.element_size(), np.uint8)).view(x.dtype)
    return memory.as_strided(shape, strides).copy_(x)


def far_is_there() -> bool:
    """Return whether this machine has enough addresses for three elements that far apart."""
    try:
        np.zeros(3 * STRIDE, np.float32)
    except MemoryError:
        return False
    return True
