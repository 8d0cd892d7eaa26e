"""Layer normalisation with the residual add and dropout before it, one pass each way.

Bytes, for n = R·C elements of b bytes: forward reads x (and residual), writes out (and h where it
is not x itself): 2nb, with dropout alone 3nb, with a residual 4nb. Backward reads dout and h, and
dh if given, and writes dx, with dropout also dresidual: 3nb, 4nb or 5nb. Saved: h, and two float32
numbers a row.

A program holds whole rows in registers, up to 8192 columns; wider ones spill, at 16384 in backward
0.4 to 2.4 KB per thread (sm_90a). The backward's sums over rows (dweight, dbias) are kept in
registers by a fixed number of programs that each take a contiguous share of the rows, written once
as partial sums and added up by a second small kernel: no atomics, the same bits in every run. So
few programs keep memory busy only if each requests much at a time: several rows, and the next ones
before it works on these (`stages`). Not timed yet; one row at a time, 768 wide, reached 0.3 of an
H200's bandwidth.

`R` rows, `C` columns; steps (1)–(7) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import dropout, layout, precision
from twofold.reference import checks
from twofold.reference.layer_norm import check


class Tile(NamedTuple):
    """Rows that a program works on at a time, its warps, and stages of backward's pipeline."""

    block_r: int
    num_warps: int
    stages: int


# (widest padded row, tile): the narrower the rows, the more of them fit in a program's registers.
# Rows that are being loaded take shared memory, of which gfx942 has 64 KiB.
TILES = (
    (128, Tile(8, 4, 2)),
    (1024, Tile(2, 4, 3)),
    (2048, Tile(1, 4, 3)),
    (4096, Tile(1, 8, 2)),
    (8192, Tile(1, 8, 1)),
    (65536, Tile(1, 16, 1)),
)
# The most shares into which backward splits the rows. Each has a program and C partial sums of
# dweight and of dbias, which are written and read again: 16·C bytes a share.
SHARES = 256


class Cache(NamedTuple):
    """The residual stream `h` (as x), which pre-norm models read, and what `backward` needs."""

    h: torch.Tensor
    mean: torch.Tensor  # (R,) float32
    rstd: torch.Tensor  # (R,) float32
    weight: torch.Tensor
    has_residual: bool
    dropout_p: float
    seed: int | torch.Tensor


class Gradients(NamedTuple):
    """Gradients of the arguments; `dresidual` is None where there was no residual."""

    dx: torch.Tensor
    dresidual: torch.Tensor | None
    dweight: torch.Tensor
    dbias: torch.Tensor


def choose_tile(columns: int) -> Tile:
    """Return the table's tile for rows of this many columns."""
    for widest, tile in TILES:
        if columns <= widest:
            return tile
    raise ValueError(f"x.shape[-1] is {columns}; it must be at most {TILES[-1][0]}")


@triton.jit(do_not_specialize=["threshold"])
def forward_kernel(
    x_ptr,  # (R, C)
    residual_ptr,  # (R, C) if HAS_RESIDUAL
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    out_ptr,  # (R, C)
    h_ptr,  # (R, C) if HAS_RESIDUAL or DROPOUT
    mean_ptr,  # (R,)
    rstd_ptr,  # (R,)
    seed_ptr,  # () int64 if DROPOUT
    R: tl.int64,
    C,
    eps,
    threshold: tl.int32,
    scale: tl.float32,
    HAS_RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalise BLOCK_R rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C)
    at = rows[:, None] * C + columns[None, :]
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    w = tl.load(weight_ptr + columns, mask=columns < C, other=0.0)  # loaded before they are needed
    b = tl.load(bias_ptr + columns, mask=columns < C, other=0.0)
    # (1) h, the residual stream; used as it is stored, so that backward sees the same numbers
    h = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        h = tl.where(dropout.keep(tl.load(seed_ptr), at, threshold), h * scale, 0.0)
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL or DROPOUT:
        stored = h.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + at, stored, mask=inside)
        h = stored.to(tl.float32)
    # (2) mean, and the variance about it
    mean = tl.sum(h, axis=1) / C
    centred = tl.where(inside, h - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / C
    rstd = 1.0 / tl.sqrt(variance + eps)
    tl.store(mean_ptr + rows, mean, mask=rows < R)
    tl.store(rstd_ptr + rows, rstd, mask=rows < R)
    # (3) normalise, scale, shift
    out = centred * rstd[:, None] * w[None, :] + b[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["threshold"])
def backward_kernel(
    dout_ptr,  # (R, C)
    dh_ptr,  # (R, C) if HAS_DH
    h_ptr,  # (R, C)
    mean_ptr,  # (R,)
    rstd_ptr,  # (R,)
    weight_ptr,  # (C,)
    dx_ptr,  # (R, C)
    dresidual_ptr,  # (R, C) if HAS_RESIDUAL and DROPOUT; otherwise it is dx
    partial_dweight_ptr,  # (programs, C) float32
    partial_dbias_ptr,  # (programs, C) float32
    seed_ptr,  # () int64 if DROPOUT
    R: tl.int64,
    C,
    rows_per_program: tl.int64,
    threshold: tl.int32,
    scale: tl.float32,
    HAS_DH: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Differentiate one program's share of the rows, summing dweight and dbias on the way."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    w = tl.load(weight_ptr + columns, mask=columns < C, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_C], tl.float32)
    dbias = tl.zeros([BLOCK_C], tl.float32)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, R)
    for start in tl.range(first, last, BLOCK_R, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_R)
        at = rows[:, None] * C + columns[None, :]
        inside = (rows[:, None] < last) & (columns[None, :] < C)
        # (4) x̂ again, from the residual stream
        h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + rows, mask=rows < last, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < last, other=0.0)
        xhat = tl.where(inside, (h - mean[:, None]) * rstd[:, None], 0.0)
        # (5) weight and bias: sums over the rows
        dweight += tl.sum(dout * xhat, axis=0)
        dbias += tl.sum(dout, axis=0)
        # (6) the residual stream: project out what the mean and the variance took away
        g = dout * w[None, :]
        along_mean = tl.sum(g, axis=1) / C
        along_xhat = tl.sum(g * xhat, axis=1) / C
        total = (g - along_mean[:, None] - xhat * along_xhat[:, None]) * rstd[:, None]
        if HAS_DH:
            total += tl.load(dh_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # (7) both branches of the sum
        dx = total
        if DROPOUT:
            if HAS_RESIDUAL:
                tl.store(dresidual_ptr + at, total.to(dx_ptr.dtype.element_ty), mask=inside)
            # The seed is read where it is used: kept across the loop, it would cost registers.
            kept = dropout.keep(tl.load(seed_ptr), at, threshold)
            dx = tl.where(kept, total * scale, 0.0)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    partial = program * C + columns
    tl.store(partial_dweight_ptr + partial, dweight, mask=columns < C)
    tl.store(partial_dbias_ptr + partial, dbias, mask=columns < C)


@triton.jit
def add_partials_kernel(
    partial_dweight_ptr,  # (programs, C) float32
    partial_dbias_ptr,  # (programs, C) float32
    dweight_ptr,  # (C,)
    dbias_ptr,  # (C,)
    programs,
    C,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the partial sums of BLOCK_C columns."""
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    dweight = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    dbias = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, programs, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        at = p[:, None] * C + columns[None, :]
        inside = (p[:, None] < programs) & (columns[None, :] < C)
        dweight += tl.load(partial_dweight_ptr + at, mask=inside, other=0.0)
        dbias += tl.load(partial_dbias_ptr + at, mask=inside, other=0.0)
    tl.store(
        dweight_ptr + columns,
        tl.sum(dweight, axis=0).to(dweight_ptr.dtype.element_ty),
        mask=columns < C,
    )
    tl.store(
        dbias_ptr + columns, tl.sum(dbias, axis=0).to(dbias_ptr.dtype.element_ty), mask=columns < C
    )


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor = 0,
    eps: float = 1e-5,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Add dropout(x) to the residual and normalise over the last axis, at most 65536 wide.

    Arguments and results are those of `reference.layer_norm.forward`; x in float16, bfloat16 or
    float32, statistics in float32. `tile` overrides the table's choice.
    """
    check(x, weight, bias, residual, dropout_p, seed, eps)
    precision.supported("x", x)
    C, eps = x.shape[-1], float(eps)
    tile = tile or choose_tile(C)
    x = x.contiguous()
    R = x.numel() // C
    out = torch.empty_like(x)
    h = x if residual is None and dropout_p == 0.0 else torch.empty_like(x)
    mean = torch.empty(R, dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    forward_kernel[(triton.cdiv(R, tile.block_r),)](
        x,
        x if residual is None else residual.contiguous(),
        weight.contiguous(),
        bias.contiguous(),
        out,
        h,
        mean,
        rstd,
        dropout.in_memory(dropout_p, seed, x),
        R,
        C,
        eps,
        dropout.threshold(dropout_p),
        dropout.scale(dropout_p),
        HAS_RESIDUAL=residual is not None,
        DROPOUT=dropout_p > 0.0,
        BLOCK_R=tile.block_r,
        BLOCK_C=triton.next_power_of_2(C),
        num_warps=tile.num_warps,
    )
    return out, Cache(h, mean, rstd, weight, residual is not None, dropout_p, seed)


def backward(
    dout: torch.Tensor,
    cache: Cache,
    dh: torch.Tensor | None = None,
    *,
    into: checks.Into = None,
    tile: Tile | None = None,
) -> Gradients:
    """Return the gradients of x, residual, weight and bias.

    Arguments and results are those of `reference.layer_norm.backward`; `into` may have any strides
    and any dtype that kernels take. `tile` overrides the table's choice.
    """
    precision.gradient("dout", dout, cache.h)
    if dh is not None:
        precision.gradient("dh", dh, cache.h)
    C = dout.shape[-1]
    given = layout.checked_into(into, dweight=(C,), dbias=(C,))
    tile = tile or choose_tile(C)
    dout = dout.contiguous()
    R = dout.numel() // C
    has_dropout = cache.dropout_p > 0.0
    dx = torch.empty_like(dout)
    dresidual = torch.empty_like(dout) if cache.has_residual and has_dropout else dx
    rows_per_program = triton.cdiv(R, SHARES * tile.block_r) * tile.block_r
    programs = triton.cdiv(R, rows_per_program)
    partials = torch.empty((2, programs, C), dtype=torch.float32, device=dout.device)
    backward_kernel[(programs,)](
        dout,
        dout if dh is None else dh.contiguous(),
        cache.h,
        cache.mean,
        cache.rstd,
        cache.weight.contiguous(),
        dx,
        dresidual,
        partials[0],
        partials[1],
        dropout.in_memory(cache.dropout_p, cache.seed, dout),
        R,
        C,
        rows_per_program,
        dropout.threshold(cache.dropout_p),
        dropout.scale(cache.dropout_p),
        HAS_DH=dh is not None,
        HAS_RESIDUAL=cache.has_residual,
        DROPOUT=has_dropout,
        BLOCK_R=tile.block_r,
        BLOCK_C=triton.next_power_of_2(C),
        STAGES=tile.stages,
        num_warps=tile.num_warps,
    )
    dweight, dbias = (layout.straight(x, cache.weight) for x in given)
    add_partials_kernel[(triton.cdiv(C, 32),)](
        partials[0], partials[1], dweight, dbias, programs, C, BLOCK_P=128, BLOCK_C=32, num_warps=8
    )
    dweight, dbias = map(layout.copied_into, (dweight, dbias), given)
    return Gradients(dx, dresidual if cache.has_residual else None, dweight, dbias)
