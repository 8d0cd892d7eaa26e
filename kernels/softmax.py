"""Softmax over the last axis: a row is read once and held in registers, if it fits.

Bytes, for n = R·C elements of b bytes: forward 2·n·b (read x, write y), backward 3·n·b (read y and
dout, write dx). A row that does not fit is taken in blocks, twice: once for the running maximum and
sum (online softmax: Milakov & Gimelshein 2018), or in backward for Σ dout·y, and once for the
result: 3·n·b and 5·n·b, less what the L2 cache still holds when the rows are read again. Saved: y.
A program takes several short rows. No atomics: the same bits in every run, and for a row whatever
the rows beside it.

`R` rows (all leading axes), `C` columns; steps (1)–(5) are those of the reference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import precision
from twofold.reference.softmax import check


class Tile(NamedTuple):
    """Rows of a program, columns it takes at a time (None: all of them), and its warps."""

    block_r: int
    block_c: int | None
    num_warps: int


# (most columns, tile); rows wider than the last entry's take its tile as well. A thread has at
# least 16 elements, of two bytes each two wide accesses; backward holds two rows and spills beyond
# 32 elements of each (`twofold verify compile softmax`).
TILES = (
    (32, Tile(64, None, 4)),
    (128, Tile(16, None, 4)),
    (512, Tile(4, None, 4)),
    (2048, Tile(1, None, 4)),
    (8192, Tile(1, None, 8)),
    (16384, Tile(1, None, 16)),
    (2**31 - 1, Tile(1, 4096, 8)),
)


class Cache(NamedTuple):
    """The output, (..., C)."""

    y: torch.Tensor


class Gradients(NamedTuple):
    """Gradient of the input, shaped as the input."""

    dx: torch.Tensor


def choose_tile(columns: int) -> Tile:
    """Return the table's tile for rows of this many columns."""
    return next((tile for most, tile in TILES if columns <= most), TILES[-1][1])


@triton.jit
def load(x_ptr, x_strides, rows, columns, R, C, other):
    """Return a tile of rows as float32, `other` outside."""
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    at = rows[:, None] * x_strides[0] + columns[None, :] * x_strides[1]
    return tl.load(x_ptr + at, mask=inside, other=other).to(tl.float32)


@triton.jit
def store(y_ptr, y, rows, columns, R, C):
    """Write a tile to contiguous rows."""
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    at = rows[:, None] * C + columns[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def zero_if_empty(top):
    """(1) Return the maxima of rows; 0 stands in for the maximum of a row that is all −∞."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def share(total):
    """(3) Return the factor of the exponentials, 1/sum, or 1 where all of them are 0."""
    return 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def forward_kernel(
    x_ptr,  # (R, C)
    y_ptr,  # (R, C)
    x_strides,
    R: tl.int64,
    C,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # C or more
):
    """Softmax of BLOCK_R rows, each held whole in registers."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C).to(tl.int64)
    x = load(x_ptr, x_strides, rows, columns, R, C, -float("inf"))
    # (1) maximum
    top = zero_if_empty(tl.max(x, axis=1))
    # (2) exponentials, and their sum
    y = tl.exp(x - top[:, None])
    total = tl.sum(y, axis=1)
    # (3) shares
    store(y_ptr, y * share(total)[:, None], rows, columns, R, C)


@triton.jit
def long_forward_kernel(
    x_ptr,  # (R, C)
    y_ptr,  # (R, C)
    x_strides,
    R: tl.int64,
    C,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Softmax of BLOCK_R rows in blocks of columns, read twice."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C).to(tl.int64)
        x = load(x_ptr, x_strides, rows, columns, R, C, -float("inf"))
        # (1) maximum so far
        before = top
        top = tl.maximum(before, tl.max(x, axis=1))
        # (2) sum of the exponentials, against it
        y = tl.exp(x - zero_if_empty(top)[:, None])
        total = total * tl.exp(before - zero_if_empty(top)) + tl.sum(y, axis=1)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C).to(tl.int64)
        x = load(x_ptr, x_strides, rows, columns, R, C, -float("inf"))
        y = tl.exp(x - zero_if_empty(top)[:, None])
        # (3) shares
        store(y_ptr, y * share(total)[:, None], rows, columns, R, C)


@triton.jit
def backward_kernel(
    dout_ptr,  # (R, C)
    y_ptr,  # (R, C)
    dx_ptr,  # (R, C)
    dout_strides,
    y_strides,
    R: tl.int64,
    C,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # C or more
):
    """Differentiate BLOCK_R rows, each held whole in registers."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C).to(tl.int64)
    y = load(y_ptr, y_strides, rows, columns, R, C, 0.0)
    dout = load(dout_ptr, dout_strides, rows, columns, R, C, 0.0)
    # (4) δ = Σ_c dout·y
    delta = tl.sum(dout * y, axis=1)
    # (5) dx = y·(dout − δ)
    store(dx_ptr, (dout - delta[:, None]) * y, rows, columns, R, C)


@triton.jit
def long_backward_kernel(
    dout_ptr,  # (R, C)
    y_ptr,  # (R, C)
    dx_ptr,  # (R, C)
    dout_strides,
    y_strides,
    R: tl.int64,
    C,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Differentiate BLOCK_R rows in blocks of columns, read twice."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    # (4) δ = Σ_c dout·y: each lane adds up its own elements; the lanes are added up once
    common = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C).to(tl.int64)
        y = load(y_ptr, y_strides, rows, columns, R, C, 0.0)
        common += load(dout_ptr, dout_strides, rows, columns, R, C, 0.0) * y
    delta = tl.sum(common, axis=1)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C).to(tl.int64)
        y = load(y_ptr, y_strides, rows, columns, R, C, 0.0)
        dout = load(dout_ptr, dout_strides, rows, columns, R, C, 0.0)
        # (5) dx = y·(dout − δ)
        store(dx_ptr, (dout - delta[:, None]) * y, rows, columns, R, C)


def forward(x: torch.Tensor, *, tile: Tile | None = None) -> tuple[torch.Tensor, Cache]:
    """Return the softmax of each row, over the last axis.

    Arguments and results are those of `reference.softmax.forward`; x in float16, bfloat16 or
    float32, any strides (it is copied only if its rows do not have one common stride). `tile`
    overrides the table's choice.
    """
    check(x)
    precision.supported("x", x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(forward_kernel, long_forward_kernel, (x,), y, tile)
    return y, Cache(y)


def backward(dout: torch.Tensor, cache: Cache, *, tile: Tile | None = None) -> Gradients:
    """Return dx = y·(dout − Σ_c dout·y).

    Arguments and results are those of `reference.softmax.backward`, in any strides. `tile`
    overrides the table's choice.
    """
    precision.gradient("dout", dout, cache.y)
    dx = torch.empty(dout.shape, dtype=dout.dtype, device=dout.device)
    _launch(backward_kernel, long_backward_kernel, (dout, cache.y), dx, tile)
    return Gradients(dx)


def _launch(
    whole: Any,
    long: Any,
    read: tuple[torch.Tensor, ...],
    written: torch.Tensor,
    tile: Tile | None,
) -> None:
    """Run one of two kernels on the rows of the inputs; the output's rows are contiguous."""
    C = written.shape[-1]
    R = written.numel() // C
    tile = tile or choose_tile(C)
    rows = [x.reshape(R, C) for x in read]  # views, if their stride is the same
    kernel = whole if tile.block_c is None else long
    kernel[(triton.cdiv(R, tile.block_r),)](
        *rows,
        written,
        *(x.stride() for x in rows),
        R,
        C,
        BLOCK_R=tile.block_r,
        BLOCK_C=tile.block_c or triton.next_power_of_2(C),
        num_warps=tile.num_warps,
    )
