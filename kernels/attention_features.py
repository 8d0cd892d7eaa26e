"""A head's features in one tile or two, as tiles are powers of two: 96 features are 64 and 32.

Padded to 128, a product over 96 features would be a third too large. So in the attention kernels
whatever has features is a tuple of tiles, (rows, BLOCK_D) and, if TAIL_D is not None, (rows,
TAIL_D).
"""

from __future__ import annotations

import triton
import triton.language as tl

from twofold.kernels.attention_parts import at, load


@triton.jit
def features(first, BLOCK_D: tl.constexpr, TAIL_D: tl.constexpr):
    """Return the indices of the features from `first` on, a row for each tile."""
    d = first + tl.arange(0, BLOCK_D)[None, :]
    if TAIL_D is None:
        return (d,)
    else:
        return d, first + BLOCK_D + tl.arange(0, TAIL_D)[None, :]


@triton.jit
def zeros(ROWS: tl.constexpr, BLOCK_D: tl.constexpr, TAIL_D: tl.constexpr):
    """Return sums that are still 0."""
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    if TAIL_D is None:
        return (acc,)
    else:
        return acc, tl.zeros([ROWS, TAIL_D], tl.float32)


@triton.jit
def load_features(ptr, strides, b, h, start, rows, d, length, D: tl.constexpr):
    """Load rows as `attention_parts.load` does."""
    x = load(ptr, strides, b, h, start, rows, d[0], length, D)
    if len(d) == 1:
        return (x,)
    else:
        return x, load(ptr, strides, b, h, start, rows, d[1], length, D)


@triton.jit
def dot_rows(x, y, PRECISION: tl.constexpr):
    """Multiply rows of x by rows of y; the result is (X, Y)."""
    product = tl.dot(x[0], tl.trans(y[0]), input_precision=PRECISION)
    if len(x) == 2:
        product = tl.dot(x[1], tl.trans(y[1]), product, input_precision=PRECISION)
    return product


@triton.jit
def add_weighted(acc, weights, x, PRECISION: tl.constexpr):
    """Add the rows of x, weighted by `weights` (rows of acc, rows of x), to sums."""
    weights = weights.to(x[0].dtype)
    total = tl.dot(weights, x[0], acc[0], input_precision=PRECISION)
    if len(x) == 1:
        return (total,)
    else:
        return total, tl.dot(weights, x[1], acc[1], input_precision=PRECISION)


@triton.jit
def scaled(acc, factor):
    """Multiply sums by a number, or by one for each row."""
    if len(acc) == 1:
        return (acc[0] * factor,)
    else:
        return acc[0] * factor, acc[1] * factor


@triton.jit
def store_features(ptr, strides, b, h, start, rows, d, inside, x, D: tl.constexpr, live=None):
    """Store the sums of the rows that are `inside`, and 0 for those not `live`."""
    store(ptr, strides, b, h, start, rows, d[0], inside, x[0], D, live)
    if len(d) == 2:
        store(ptr, strides, b, h, start, rows, d[1], inside, x[1], D, live)


@triton.jit
def store(ptr, strides, b, h, start, rows, columns, inside, x, D: tl.constexpr, live=None):
    """Store one tile of such sums."""
    if live is not None:
        x = tl.where(live, x, 0.0)
    x = x.to(ptr.dtype.element_ty)
    tl.store(at(ptr, strides, b, h, start, rows, columns), x, mask=inside & (columns < D))
