"""Pooling in one pass over what is not padding; backward writes every element of dx once.

Bytes: forward reads the Σ lengths·D elements that count (for "first" B·D) and writes B·D or 2·B·D,
and with a maximum the position of each as an int32. Backward reads those and writes B·L·D.

A program owns a block of columns of one sequence, so a sum has one order and no atomics. Each of
its rows of registers keeps the first maximum among the positions it saw; at the end the earliest
of the largest wins. A NaN counts as largest, as in NumPy and torch.

`B` batch, `L` length, `D` features. Steps (1)–(3) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import precision
from twofold.reference import checks
from twofold.reference.pooling import check


class Tile(NamedTuple):
    """Positions and features a program works on at a time, and with how many warps."""

    block_l: int
    block_d: int
    num_warps: int


# (most features, tile): 64 features of two bytes are one line of the cache; the last entry takes
# the rest.
TILES = (
    (16, Tile(128, 16, 4)),
    (None, Tile(32, 64, 4)),
)


class Cache(NamedTuple):
    """What `backward` needs; `argmax` is None where no maximum is taken."""

    lengths: torch.Tensor
    argmax: torch.Tensor | None  # (B, D) int32
    length: int
    features: int
    kind: str


class Gradients(NamedTuple):
    """Gradient of the sequence, (B, L, D)."""

    dx: torch.Tensor


def choose_tile(features: int) -> Tile:
    """Return the table's tile for this many features."""
    return next(tile for most, tile in TILES if most is None or features <= most)


@triton.jit
def forward_kernel(
    x_ptr,  # (B, L, D)
    lengths_ptr,  # (B,)
    out_ptr,  # (B, D), (B, 2·D) if MEAN and MAX
    argmax_ptr,  # (B, D) int32 if MAX
    x_strides,
    L,
    D,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Pool BLOCK_D features of one sequence; with neither MEAN nor MAX take its first position."""
    b = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    length = tl.load(lengths_ptr + b)
    valid = (length >= 1) & (length <= L)
    x_at = x_ptr + b * x_strides[0] + columns[None, :].to(tl.int64) * x_strides[2]
    l = tl.arange(0, BLOCK_L)  # noqa: E741
    total = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_L, BLOCK_D], -float("inf"), tl.float32)
    where = l[:, None] + tl.zeros([BLOCK_L, BLOCK_D], tl.int32)
    stop = length.to(tl.int32) if MEAN or MAX else 1
    for start in range(0, tl.where(valid, stop, 0), BLOCK_L):
        # (1) the positions that count
        rows = start + l[:, None]
        inside = (rows < stop) & (columns < D)[None, :]
        x = tl.load(x_at + rows.to(tl.int64) * x_strides[1], mask=inside, other=0.0)
        x = x.to(tl.float32)
        # (3) maximum so far of each row of registers, and where it is first; (2) mean: the sum
        if MAX:
            larger = (x > top) | ((x != x) & (top == top))
            take = inside & larger
            top = tl.where(take, x, top)
            where = tl.where(take, rows, where)
        total += x
    out_width = D * (2 if MEAN and MAX else 1)
    out_at = out_ptr + b * out_width + columns
    # (2) mean
    if MEAN or not MAX:
        pooled = tl.sum(total, axis=0)
        if MEAN:
            pooled = pooled / length.to(tl.float32)
        pooled = tl.where(valid, pooled, float("nan")).to(out_ptr.dtype.element_ty)
        tl.store(out_at, pooled, mask=columns < D)
    # (3) maximum
    if MAX:
        is_nan = top != top
        any_nan = tl.max(is_nan.to(tl.int32), axis=0) > 0
        largest = tl.max(tl.where(is_nan, -float("inf"), top), axis=0)
        attains = tl.where(any_nan[None, :], is_nan, top == largest[None, :])
        first = tl.min(tl.where(attains, where, 2147483647), axis=0)
        largest = tl.where(any_nan, float("nan"), largest)
        largest = tl.where(valid, largest, float("nan")).to(out_ptr.dtype.element_ty)
        tl.store(out_at + (D if MEAN else 0), largest, mask=columns < D)
        tl.store(argmax_ptr + b * D + columns, first, mask=columns < D)


@triton.jit
def backward_kernel(
    dout_ptr,  # (B, D), (B, 2·D) if MEAN and MAX
    lengths_ptr,  # (B,)
    argmax_ptr,  # (B, D) int32 if MAX
    dx_ptr,  # (B, L, D)
    L,
    D,
    MEAN: tl.constexpr,
    MAX: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write BLOCK_L positions of dx, padding and all."""
    blocks = tl.cdiv(L, BLOCK_L)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    rows = tl.program_id(0) % blocks * BLOCK_L + tl.arange(0, BLOCK_L)[:, None]
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    length = tl.load(lengths_ptr + b)
    dout_at = dout_ptr + b * D * (2 if MEAN and MAX else 1) + columns
    dx = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    # (2) mean, of (1) the positions that count
    if MEAN or not MAX:
        dout = tl.load(dout_at, mask=columns < D, other=0.0).to(tl.float32)
        if MEAN:
            dx = tl.where(rows < length, dout * (1.0 / length.to(tl.float32)), dx)
        else:
            dx = tl.where(rows == 0, dout, dx)
    # (3) maximum
    if MAX:
        dout = tl.load(dout_at + (D if MEAN else 0), mask=columns < D, other=0.0).to(tl.float32)
        first = tl.load(argmax_ptr + b * D + columns, mask=columns < D, other=-1)
        dx += tl.where(rows == first, dout, 0.0)
    valid = (length >= 1) & (length <= L)
    dx = tl.where(valid, dx, float("nan")).to(dx_ptr.dtype.element_ty)
    at = (b * L + rows) * D + columns
    tl.store(dx_ptr + at, dx, mask=(rows < L) & (columns < D))


def forward(
    x: torch.Tensor, lengths: torch.Tensor, kind: str = "mean", *, tile: Tile | None = None
) -> tuple[torch.Tensor, Cache]:
    """Pool every sequence, of any strides, over its own positions; a bad length gives NaN.

    Arguments and results are those of `reference.pooling.forward`; sums in float32. `tile`
    overrides the table's choice.
    """
    check(x, lengths, kind)
    precision.supported("x", x)
    B, L, D = x.shape
    tile = tile or choose_tile(D)
    lengths = lengths.contiguous()
    width = 2 * D if kind == "mean_max" else D
    out = torch.empty((B, width), dtype=x.dtype, device=x.device)
    argmax = None
    if "max" in kind:
        argmax = torch.empty((B, D), dtype=torch.int32, device=x.device)
    forward_kernel[(B, triton.cdiv(D, tile.block_d))](
        x, lengths, out, out if argmax is None else argmax, x.stride(), L, D, **_options(kind, tile)
    )
    return out, Cache(lengths, argmax, L, D, kind)


def backward(dout: torch.Tensor, cache: Cache, *, tile: Tile | None = None) -> Gradients:
    """Spread the mean's gradient over its positions; give the maximum's to where it was attained.

    Arguments and results are those of `reference.pooling.backward`. `tile` overrides the table's
    choice.
    """
    B, L, D = len(cache.lengths), cache.length, cache.features
    checks.gradient("dout", dout, (B, 2 * D if cache.kind == "mean_max" else D))
    precision.supported("dout", dout)
    tile = tile or choose_tile(D)
    dx = torch.empty((B, L, D), dtype=dout.dtype, device=dout.device)
    argmax = cache.lengths if cache.argmax is None else cache.argmax
    backward_kernel[(B * triton.cdiv(L, tile.block_l), triton.cdiv(D, tile.block_d))](
        dout.contiguous(), cache.lengths, argmax, dx, L, D, **_options(cache.kind, tile)
    )
    return Gradients(dx)


def _options(kind: str, tile: Tile) -> dict[str, object]:
    """Return the arguments that both kernels share: variant, tile."""
    return {
        "MEAN": "mean" in kind,
        "MAX": "max" in kind,
        "BLOCK_L": tile.block_l,
        "BLOCK_D": tile.block_d,
        "num_warps": tile.num_warps,
    }
