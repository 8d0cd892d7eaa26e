"""Root mean square layer normalisation with the residual add before it, one pass each way.

Bytes, for n = R·C elements of b bytes: forward reads x (and residual), writes out (and h where it
is not x itself): 2nb, with a residual 4nb. Backward reads dout and h, and dh if given, and writes
dx, which is the residual's gradient too: 3nb or 4nb. Saved: h, and one float32 number a row;
recomputing it would take a second sum over each row, loading it takes 4 bytes.

A program holds whole rows in registers, as in `layer_norm`, with less beside them: neither a mean
nor a shift. So the tiles are those of `layer_norm`, and so is dweight, without atomics and with the
same bits in every run: a fixed number of programs each sum a contiguous share of the rows, and a
small second kernel, the one that adds up a bias's gradient in `activation`, adds up their partial
sums. Not timed yet.

`R` rows, `C` columns; steps (1)–(6) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import layout, precision
from twofold.kernels.activation import add_partials_kernel
from twofold.kernels.layer_norm import SHARES, TILES, Tile, choose_tile
from twofold.reference import checks
from twofold.reference.rms_norm import check

__all__ = ["TILES", "Cache", "Gradients", "Tile", "backward", "choose_tile", "forward"]


class Cache(NamedTuple):
    """The residual stream `h` (as x), which pre-norm models read, and what `backward` needs."""

    h: torch.Tensor
    rstd: torch.Tensor  # (R,) float32
    weight: torch.Tensor
    offset: float
    has_residual: bool


class Gradients(NamedTuple):
    """Gradients of the arguments; `dresidual` is None where there was no residual, else `dx`."""

    dx: torch.Tensor
    dresidual: torch.Tensor | None
    dweight: torch.Tensor


@triton.jit
def forward_kernel(
    x_ptr,  # (R, C)
    residual_ptr,  # (R, C) if HAS_RESIDUAL
    weight_ptr,  # (C,)
    out_ptr,  # (R, C)
    h_ptr,  # (R, C) if HAS_RESIDUAL
    rstd_ptr,  # (R,)
    R: tl.int64,
    C,
    eps,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalise BLOCK_R rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_C)
    at = rows[:, None] * C + columns[None, :]
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    w = tl.load(weight_ptr + columns, mask=columns < C, other=0.0)  # loaded before it is needed
    # (1) h, the residual stream; used as it is stored, so that backward sees the same numbers
    h = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        h += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        stored = h.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + at, stored, mask=inside)
        h = stored.to(tl.float32)
    # (2) mean of the squares; what is outside is 0, and adds nothing
    mean_square = tl.sum(h * h, axis=1) / C
    rstd = 1.0 / tl.sqrt(mean_square + eps)
    tl.store(rstd_ptr + rows, rstd, mask=rows < R)
    # (3) normalise, scale
    out = h * rstd[:, None] * (w.to(tl.float32) + offset)[None, :]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dout_ptr,  # (R, C)
    dh_ptr,  # (R, C) if HAS_DH
    h_ptr,  # (R, C)
    rstd_ptr,  # (R,)
    weight_ptr,  # (C,)
    dx_ptr,  # (R, C)
    partial_dweight_ptr,  # (programs, C) float32
    R: tl.int64,
    C,
    rows_per_program: tl.int64,
    offset,
    HAS_DH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Differentiate one program's share of the rows, summing dweight on the way."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    w = tl.load(weight_ptr + columns, mask=columns < C, other=0.0).to(tl.float32) + offset
    dweight = tl.zeros([BLOCK_C], tl.float32)
    first = program * rows_per_program
    last = tl.minimum(first + rows_per_program, R)
    for start in tl.range(first, last, BLOCK_R, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_R)
        at = rows[:, None] * C + columns[None, :]
        inside = (rows[:, None] < last) & (columns[None, :] < C)
        # (4) ĥ again, from the residual stream
        h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + rows, mask=rows < last, other=0.0)
        normed = h * rstd[:, None]
        # (5) weight: a sum over the rows
        dweight += tl.sum(dout * normed, axis=0)
        # (6) the residual stream: project out what the root mean square took away
        g = dout * w[None, :]
        along = tl.sum(g * normed, axis=1) / C
        dx = (g - normed * along[:, None]) * rstd[:, None]
        if HAS_DH:
            dx += tl.load(dh_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(partial_dweight_ptr + program * C + columns, dweight, mask=columns < C)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Add x to the residual and divide by the root mean square over the last axis, ≤ 65536 wide.

    Arguments and results are those of `reference.rms_norm.forward`; x in float16, bfloat16 or
    float32, the root in float32. `tile` overrides the table's choice.
    """
    check(x, weight, residual, eps, offset)
    precision.supported("x", x)
    C, eps, offset = x.shape[-1], float(eps), float(offset)
    tile = tile or choose_tile(C)
    x = x.contiguous()
    R = x.numel() // C
    out = torch.empty_like(x)
    h = x if residual is None else torch.empty_like(x)
    rstd = torch.empty(R, dtype=torch.float32, device=x.device)
    forward_kernel[(triton.cdiv(R, tile.block_r),)](
        x,
        x if residual is None else residual.contiguous(),
        weight.contiguous(),
        out,
        h,
        rstd,
        R,
        C,
        eps,
        offset,
        HAS_RESIDUAL=residual is not None,
        BLOCK_R=tile.block_r,
        BLOCK_C=triton.next_power_of_2(C),
        num_warps=tile.num_warps,
    )
    return out, Cache(h, rstd, weight, offset, residual is not None)


def backward(
    dout: torch.Tensor,
    cache: Cache,
    dh: torch.Tensor | None = None,
    *,
    into: checks.Into = None,
    tile: Tile | None = None,
) -> Gradients:
    """Return the gradients of x, residual and weight.

    Arguments and results are those of `reference.rms_norm.backward`; `into` may have any strides
    and any dtype that kernels take. `tile` overrides the table's choice.
    """
    precision.gradient("dout", dout, cache.h)
    if dh is not None:
        precision.gradient("dh", dh, cache.h)
    C = dout.shape[-1]
    (dweight,) = layout.checked_into(into, dweight=(C,))
    tile = tile or choose_tile(C)
    dout = dout.contiguous()
    R = dout.numel() // C
    dx = torch.empty_like(dout)
    rows_per_program = triton.cdiv(R, SHARES * tile.block_r) * tile.block_r
    programs = triton.cdiv(R, rows_per_program)
    partials = torch.empty((programs, C), dtype=torch.float32, device=dout.device)
    backward_kernel[(programs,)](
        dout,
        dout if dh is None else dh.contiguous(),
        cache.h,
        cache.rstd,
        cache.weight.contiguous(),
        dx,
        partials,
        R,
        C,
        rows_per_program,
        cache.offset,
        HAS_DH=dh is not None,
        BLOCK_R=tile.block_r,
        BLOCK_C=triton.next_power_of_2(C),
        STAGES=tile.stages,
        num_warps=tile.num_warps,
    )
    dweight = layout.fresh(cache.weight) if dweight is None else dweight
    add_partials_kernel[(triton.cdiv(C, 32),)](
        partials, dweight, dweight.stride(), programs, C, BLOCK_S=128, BLOCK_C=32, num_warps=8
    )
    return Gradients(dx, dx if cache.has_residual else None, dweight)
