"""Partial attention merged in one launch, forward and backward; the parts are read in place.

A program owns a block of rows, (h, m) in turn, of one batch element, and goes through the parts one
after the other: a sum has one order, in which a part that was left out adds a zero, and there are
no atomics. The weights are known before the first output is read: nothing is ever rescaled, and no
sum exceeds the largest of the outputs by more than roundings.

Bytes, for n = B·H·M·D elements of b bytes: forward reads S·n·b of outs and 4·S·n/D of lses (twice
again from the cache for each part) and writes n·b. Backward reads outs and dout and writes S·n·b.
It goes through the outs twice: once to merge them again, once for the gradients, and the second
time a program finds its rows of them in the cache, S·1024 elements at most. Reading the stored
output would save the first round, but its rounding would enter the float32 dlses, whose sum over
the parts would no longer be dlse.
Operations: 2 per element of outs forward, 6 backward.

Any strides: parts may be views of one array, heads inside or outside; the two gradients are new.

`S` parts, `B` batch, `H` heads, `M` queries, `D` head_dim; steps (1)–(6) are those of the
reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels.layout import side_by_side
from twofold.kernels.precision import DTYPES, on_current_device, supported
from twofold.reference import checks
from twofold.reference.merge_attention import check, check_backward

MOST_ROWS = 2**30  # of a batch, whose rows are counted in 32 bits
LEAST = tl.constexpr(-3.4028234663852886e38)  # the least finite float32


class Tile(NamedTuple):
    """Rows of a program, how many lses it reads at a time to find the largest, and its warps."""

    block_r: int
    block_s: int
    num_warps: int


# (largest head_dim, tile): 1024 elements of a part at a time, 16 bytes of float16 for each thread.
# More would leave multiprocessors idle in decoding, where rows are few.
TILES = (
    (32, Tile(32, 16, 4)),
    (128, Tile(8, 16, 4)),
    (256, Tile(4, 16, 4)),
    (512, Tile(2, 16, 4)),
)


class Cache(NamedTuple):
    """What `backward` needs; `lse` (B, H, M) is float32, the natural logarithm."""

    outs: torch.Tensor
    lses: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor


class Gradients(NamedTuple):
    """Gradients of outs and lses, with their shapes."""

    douts: torch.Tensor
    dlses: torch.Tensor


def choose_tile(head_dim: int) -> Tile:
    """Return the table's tile for this head_dim."""
    return next(tile for largest, tile in TILES if head_dim <= largest)


@triton.jit
def place(program, H, M, BLOCK_R: tl.constexpr):
    """Return b of a program, (h, m) of its rows, and their numbers among the rows of b."""
    blocks = tl.cdiv(H * M, BLOCK_R)
    rows = program % blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    return (program // blocks).to(tl.int64), rows // M, rows % M, rows


@triton.jit
def at(strides, b, h, m):
    """Return where rows begin in a (B, H, M, …) array; what may pass 2³¹ is 64 bits wide."""
    return b * strides[0] + h.to(tl.int64) * strides[1] + m.to(tl.int64) * strides[2]


@triton.jit
def load_lse(s, lses_at, lses_part, inside):
    """Return the lses of rows in part s."""
    return tl.load(lses_at + tl.cast(s, tl.int64) * lses_part, mask=inside, other=-float("inf"))


@triton.jit
def sum_weights(lses_at, lses_part, inside, S, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return rows' top lse, Σ_s exp(lse_s − top) and 1/Σ: LEAST, 0, 1 if all are left out."""
    # (1) log-sum-exp: the largest lse, or LEAST, so that −∞ − top is −∞ and not NaN
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    for start in range(0, S, BLOCK_S):
        s = (start + tl.arange(0, BLOCK_S)[None, :]).to(tl.int64)
        lses = tl.load(
            lses_at[:, None] + s * lses_part,
            mask=inside[:, None] & (s < S),
            other=-float("inf"),
        )
        top = tl.maximum(top, tl.max(lses, axis=1))
    top = tl.maximum(top, LEAST)  # a single use, as Triton 3.6 needs of a loop's maximum
    # (1) log-sum-exp: the sum, one by one; in a tree, a part left out would regroup the others
    total = tl.zeros([BLOCK_R], tl.float32)
    for s in range(S):
        total += tl.exp(load_lse(s, lses_at, lses_part, inside) - top)
    # (2) weights: the common factor of each row
    return top, total, 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def weigh_part(s, outs_at, lses_at, outs_part, lses_part, top, inverse, inside, columns):
    """Return the weights of rows in part s, and their outputs: zero where the part is left out."""
    lse = load_lse(s, lses_at, lses_part, inside)
    read = (lse > -float("inf"))[:, None] & columns
    out = tl.load(outs_at + tl.cast(s, tl.int64) * outs_part, mask=read, other=0.0).to(tl.float32)
    # (2) weights
    return tl.exp(lse - top) * inverse, out


@triton.jit
def merge(
    outs_at, lses_at, outs_part, lses_part, top, inverse, inside, columns, S,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return the output of rows, 0 where all parts are left out."""
    # (3) output
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for s in range(S):
        w, out = weigh_part(
            s, outs_at, lses_at, outs_part, lses_part, top, inverse, inside, columns
        )
        acc += w[:, None] * out
    return acc


@triton.jit
def forward_rows(
    outs_ptr, lses_ptr, out_ptr, lse_ptr,
    outs_part, lses_part, outs_strides, lses_strides, out_strides,
    b, h, m, rows, S, H, M, D,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merge the first S parts of rows (h, m) of batch b; the arguments are `forward_kernel`'s."""
    d = tl.arange(0, BLOCK_D)[None, :].to(tl.int64)
    inside = rows < H * M
    columns = inside[:, None] & (d < D)
    outs_at = outs_ptr + at(outs_strides, b, h, m)[:, None] + d * outs_strides[3]
    lses_at = lses_ptr + at(lses_strides, b, h, m)
    top, total, inverse = sum_weights(lses_at, lses_part, inside, S, BLOCK_R, BLOCK_S)
    out = merge(
        outs_at, lses_at, outs_part, lses_part, top, inverse, inside, columns, S, BLOCK_R, BLOCK_D
    )
    # (1) log-sum-exp, completed; only here, so that it takes no registers while outputs are read
    lse = tl.where(total == 0.0, -float("inf"), top + tl.log(total))
    tl.store(lse_ptr + b * H * M + rows, lse, mask=inside)
    out_at = out_ptr + at(out_strides, b, h, m)[:, None] + d * out_strides[3]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=columns)


@triton.jit
def forward_kernel(
    outs_ptr,  # (S, B, H, M, D)
    lses_ptr,  # (S, B, H, M) float32
    out_ptr,  # (B, H, M, D)
    lse_ptr,  # (B, H, M) float32
    outs_part, lses_part,  # from one part to the next
    outs_strides, lses_strides, out_strides,  # of (B, H, M) and D
    S, H, M, D,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merge BLOCK_R rows."""
    b, h, m, rows = place(tl.program_id(0), H, M, BLOCK_R)
    forward_rows(
        outs_ptr, lses_ptr, out_ptr, lse_ptr,
        outs_part, lses_part, outs_strides, lses_strides, out_strides,
        b, h, m, rows, S, H, M, D, BLOCK_R, BLOCK_S, BLOCK_D,
    )  # fmt: skip


@triton.jit
def backward_kernel(
    outs_ptr,  # (S, B, H, M, D)
    lses_ptr,  # (S, B, H, M) float32
    dout_ptr,  # (B, H, M, D)
    dlse_ptr,  # (B, H, M) float32 if HAS_DLSE
    douts_ptr,  # (S, B, H, M, D)
    dlses_ptr,  # (S, B, H, M) float32
    outs_part, lses_part,  # from one part to the next
    outs_strides, lses_strides, dout_strides, dlse_strides,  # of (B, H, M) and D
    S, B, H, M, D,
    HAS_DLSE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradients of BLOCK_R rows of every part."""
    b, h, m, rows = place(tl.program_id(0), H, M, BLOCK_R)
    d = tl.arange(0, BLOCK_D)[None, :].to(tl.int64)
    inside = rows < H * M
    columns = inside[:, None] & (d < D)
    outs_at = outs_ptr + at(outs_strides, b, h, m)[:, None] + d * outs_strides[3]
    lses_at = lses_ptr + at(lses_strides, b, h, m)
    # (4) weights and output again
    top, _, inverse = sum_weights(lses_at, lses_part, inside, S, BLOCK_R, BLOCK_S)
    out = merge(
        outs_at, lses_at, outs_part, lses_part, top, inverse, inside, columns, S, BLOCK_R, BLOCK_D
    )
    dout_at = dout_ptr + at(dout_strides, b, h, m)[:, None] + d * dout_strides[3]
    dout = tl.load(dout_at, mask=columns, other=0.0).to(tl.float32)
    if HAS_DLSE:
        dlse = tl.load(dlse_ptr + at(dlse_strides, b, h, m), mask=inside, other=0.0)
    for s in range(S):
        w, part = weigh_part(
            s, outs_at, lses_at, outs_part, lses_part, top, inverse, inside, columns
        )
        row_at = (tl.cast(s, tl.int64) * B + b) * H * M + rows
        # (5) gradients of the outputs
        douts = (w[:, None] * dout).to(douts_ptr.dtype.element_ty)
        tl.store(douts_ptr + row_at[:, None] * D + d, douts, mask=columns)
        # (6) gradients of the log-sum-exps
        dlses = tl.sum(dout * (part - out), axis=1)
        if HAS_DLSE:
            dlses += dlse
        tl.store(dlses_ptr + row_at, w * dlses, mask=inside)


def forward(
    outs: torch.Tensor,
    lses: torch.Tensor,
    *,
    out_dtype: str | torch.dtype | None = None,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Merge the outputs of attention over disjoint sets of keys by their log-sum-exp.

    Arguments and results are those of `reference.merge_attention.forward`, in float16, bfloat16 or
    float32, any strides; sums in float32. float32 parts make a bfloat16 result where `out_dtype`
    says so; `tile` overrides the table's choice.
    """
    check(outs, lses)
    supported("outs", outs)
    S, B, H, M, D = outs.shape
    asked = outs.dtype if out_dtype is None else out_dtype
    name = checks.floating_dtype("out_dtype", asked, DTYPES)
    checks.require(H * M <= MOST_ROWS, "outs.shape[2:4]", (H, M), f"of at most {MOST_ROWS} rows")
    tile = tile or choose_tile(D)
    out = side_by_side((B, H, M, D), getattr(torch, name), outs.device)
    lse = torch.empty((B, H, M), dtype=torch.float32, device=outs.device)
    forward_kernel[(triton.cdiv(H * M, tile.block_r) * B,)](
        outs, lses, out, lse,
        outs.stride(0), lses.stride(0), outs.stride()[1:], lses.stride()[1:], out.stride(),
        S, H, M, D,
        **constants(D, tile),
    )  # fmt: skip
    return out, Cache(outs, lses, out, lse)


def backward(
    dout: torch.Tensor,
    cache: Cache,
    dlse: torch.Tensor | None = None,
    *,
    tile: Tile | None = None,
) -> Gradients:
    """Return the gradients of outs and lses.

    Arguments and results are those of `reference.merge_attention.backward`. `tile` overrides the
    table's choice.
    """
    outs, lses = cache.outs, cache.lses
    check_backward(dout, dlse, cache.out)
    on_current_device("dout", dout)
    S, B, H, M, D = outs.shape
    tile = tile or choose_tile(D)
    douts = torch.empty((S, B, H, M, D), dtype=outs.dtype, device=outs.device)
    dlses = torch.empty((S, B, H, M), dtype=torch.float32, device=outs.device)
    backward_kernel[(triton.cdiv(H * M, tile.block_r) * B,)](
        outs, lses, dout, lses if dlse is None else dlse, douts, dlses,
        outs.stride(0), lses.stride(0), outs.stride()[1:], lses.stride()[1:], dout.stride(),
        (0, 0, 0) if dlse is None else dlse.stride(),
        S, B, H, M, D,
        HAS_DLSE=dlse is not None,
        **constants(D, tile),
    )  # fmt: skip
    return Gradients(douts, dlses)


def constants(D: int, tile: Tile) -> dict[str, int]:
    """Return the arguments that all kernels share: the tile."""
    return {
        "BLOCK_R": tile.block_r,
        "BLOCK_S": tile.block_s,
        "BLOCK_D": triton.next_power_of_2(D),
        "num_warps": tile.num_warps,
    }
