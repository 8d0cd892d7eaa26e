"""What the attention kernels share: how a tile is placed, loaded and scored.

`B` batch, `H` heads, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def at(ptr, strides, b, h, start, rows, columns):
    """Point at [b, h, start + rows, columns]; what may pass 2³¹ is 64 bits wide."""
    base = b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]
    start = tl.cast(start, tl.int64)
    return ptr + base + start * strides[2] + rows * strides[2] + columns * strides[3]


@triton.jit
def load(ptr, strides, b, h, start, rows, columns, length, D: tl.constexpr):
    """Load a tile of rows, zero at and after `length` and past head_dim."""
    inside = (start + rows < length) & (columns < D)
    return tl.load(at(ptr, strides, b, h, start, rows, columns), mask=inside, other=0.0)


@triton.jit
def products(
    x_ptr, x_strides, y_ptr, y_strides, b, h,
    x_first, x_rows, x_length, y_first, y_rows, y_length,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply rows of x by rows of y, CHUNK_D features at a time: registers hold no more of them.

    `x_rows` (X, 1) and `y_rows` (Y, 1) are numbers within the tiles; the result is (X, Y).
    """
    acc = tl.zeros([x_rows.shape[0], y_rows.shape[0]], tl.float32)
    for chunk in range(0, BLOCK_D, CHUNK_D):
        d = chunk + tl.arange(0, CHUNK_D)[None, :]
        x = load(x_ptr, x_strides, b, h, x_first, x_rows, d, x_length, D)  # (X, CHUNK_D)
        y = load(y_ptr, y_strides, b, h, y_first, y_rows, d, y_length, D)  # (Y, CHUNK_D)
        acc = tl.dot(x, tl.trans(y), acc, input_precision=PRECISION)
    return acc


@triton.jit
def place(program, blocks, H):
    """Return (block, b, h) of a program; the last blocks, longest where causal, come first."""
    bh = program // blocks
    return blocks - 1 - program % blocks, bh // H, bh % H


@triton.jit
def keys_present(lengths_ptr, b, N, HAS_LENGTHS: tl.constexpr):
    """Return how many keys of batch b are no padding."""
    if HAS_LENGTHS:
        return tl.minimum(tl.maximum(tl.load(lengths_ptr + b).to(tl.int32), 0), N)
    else:
        return N


@triton.jit
def keys_seen(
    first, shift, present, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Return (full, end): every query of a tile sees keys [0, full), some see [full, end)."""
    full = present
    end = present
    if CAUSAL:
        full = tl.minimum(present, tl.maximum(first + 1 + shift, 0))
        end = tl.minimum(present, tl.maximum(first + BLOCK_M + shift, 0))
    return full // BLOCK_N * BLOCK_N, end


@triton.jit
def scores(
    product, mask_ptr, mask_strides, b, h, rows, columns, present, shift, M, scale,
    EDGE: tl.constexpr, CAUSAL: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """(1) Scale a tile of products into base-2 scores, −∞ where a query may not attend.

    `rows` and `columns` are the tile's query and key numbers, in either orientation. Only an EDGE
    tile needs to look at the lengths and the diagonal.
    """
    s = product * scale
    if EDGE:
        live = columns < present
        if CAUSAL:
            live = live & (columns <= rows + shift)
        s = tl.where(live, s, -float("inf"))
    if HAS_MASK:
        inside = (rows < M) & (columns < present)
        where = at(mask_ptr, mask_strides, b, h, 0, rows.to(tl.int64), columns.to(tl.int64))
        s = tl.where(tl.load(where, mask=inside, other=0) != 0, s, -float("inf"))
    return s
