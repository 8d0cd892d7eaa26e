"""A linear layer: one matrix product with strides, and activation and bias in its epilogue.

The same kernel computes all three products, a transpose being no more than a swap of strides:

    y = f(x·Wᵀ + b),   dx = dz·W,   dW = dzᵀ·x

Bytes, for elements of b bytes: forward reads x and W and writes y; with an activation also z, what
it was applied to, which costs R·N·b and saves backward a product of 2·R·N·K operations.
(ReLU's derivative can be read off y.) Backward needs dz = dout·f′(z) in two products, each of which
loads it once for every column of its tiles: it is computed in a pass of its own, 3·R·N·b, not again
and again in the prologue of both. The same pass, which is `activation`'s, sums db over shares of
the rows: no atomics, the same bits in every run. Without an activation dz is dout, and what remains
of the pass is to read it; without a bias, or with a frozen one, nothing remains.

The programs that run at one time form compact groups of tiles, so that they share what L2 holds.

`R` rows, `K` features in, `N` features out; in the product, `M` × `K` times `K` × `N`. Steps (1)
and (2) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels.activation import activate, differentiate
from twofold.kernels.attention_tiles import aligned
from twofold.kernels.device import architecture
from twofold.kernels.layout import asked, fresh
from twofold.kernels.precision import float32_products, supported
from twofold.reference import checks
from twofold.reference.linear import check


class Tile(NamedTuple):
    """Rows, columns and depth of a program's tile; tile rows in a group; warps, stages."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


# (bytes of an element, tile), the largest first: large tiles load less, small ones fill the GPU.
# None spills with GELU behind it (`twofold verify compile linear`); all fit gfx942's 64 KiB.
TILES = (
    (2, Tile(128, 128, 64, 8, 8, 3)),
    (2, Tile(64, 64, 64, 8, 4, 4)),
    (2, Tile(32, 32, 64, 8, 4, 4)),
    (4, Tile(128, 64, 32, 8, 8, 2)),
    (4, Tile(64, 64, 32, 8, 8, 3)),
    (4, Tile(32, 32, 32, 8, 4, 2)),
)
# Rows of c whose distance 16 does not divide are written an element at a time, and the addresses of
# larger tiles of two-byte elements would spill.
UNALIGNED = Tile(64, 64, 64, 8, 8, 4)
# More shared memory than others have. How much a tile has to multiply for what it loads decides
# where the second-level cache feeds the matrix units: 128×128 came to 380 TFLOP/s on an H200, half
# of what these do. This one has not been timed yet.
HOPPER = Tile(128, 256, 64, 8, 8, 3)
ENTRIES = (*TILES, (2, UNALIGNED), (2, HOPPER))  # all of them, for the tests
ENOUGH_PROGRAMS = 128  # about as many as a large GPU has multiprocessors
MULTIPROCESSORS = 132  # of a Hopper
SHARES = 64  # into which the rows are split to sum db, hence partial sums of it


class Cache(NamedTuple):
    """What `backward` needs: `z` is the activation's input or, for ReLU, its output."""

    x: torch.Tensor
    weight: torch.Tensor
    z: torch.Tensor | None  # (R, N)
    activation: str | None
    has_bias: bool
    allow_tf32: bool


class Gradients(NamedTuple):
    """Gradients of the arguments; None for those not made, and `dbias` where there was no bias."""

    dx: torch.Tensor | None
    dweight: torch.Tensor | None
    dbias: torch.Tensor | None


def choose_tile(
    m: int,
    n: int,
    element_size: int,
    *,
    aligned: bool = True,
    activated: bool = False,
    architecture: str = "",
) -> Tile:
    """Return the largest tile that makes enough programs of an m × n product.

    On Hopper ("sm_90", as `device.architecture` says) it is the one that has most to multiply for
    what it loads, on as many multiprocessors as it keeps busy. `aligned` says whether 16 divides
    the distance of its rows, in elements; `activated`, whether there is an activation, beside which
    Hopper's own tile would spill.
    """
    fitting = [tile for size, tile in TILES if size == min(max(element_size, 2), 4)]
    if element_size <= 2 and not aligned:
        fitting = [UNALIGNED, fitting[-1]]
    elif element_size <= 2 and architecture == "sm_90":
        fitting = fitting if activated else [HOPPER, *fitting]
        return max(fitting, key=lambda tile: _fed(m, n, tile))
    for tile in fitting:
        if triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n) >= ENOUGH_PROGRAMS:
            return tile
    return fitting[-1]


def _fed(m: int, n: int, tile: Tile) -> float:
    """Return operations for each element that is loaded, times the share of busy processors."""
    programs: int = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    operations = min(m, tile.block_m) * min(n, tile.block_n) / (tile.block_m + tile.block_n)
    return operations * min(1.0, programs / MULTIPROCESSORS)


@triton.jit
def gemm_kernel(
    a_ptr,  # (M, K)
    b_ptr,  # (K, N)
    bias_ptr,  # (N,) if HAS_BIAS
    c_ptr,  # (M, N)
    z_ptr,  # (M, N) if SAVE_Z, strides as c's
    a_strides, b_strides, bias_strides, c_strides,
    M, N, K,
    KIND: tl.constexpr,  # the activation, or "none"
    HAS_BIAS: tl.constexpr,
    SAVE_Z: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    """c = f(a·b + bias), one tile of it."""
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    i, j = tl.swizzle2d(program // blocks_n, program % blocks_n, blocks_m, blocks_n, GROUP_M)
    m = (i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    n = (j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    k = tl.arange(0, BLOCK_K)
    along_a, along_b = k[None, :].to(tl.int64), k[:, None].to(tl.int64)
    a_at = a_ptr + m * a_strides[0] + along_a * a_strides[1]  # (BLOCK_M, BLOCK_K)
    b_at = b_ptr + along_b * b_strides[0] + n * b_strides[1]  # (BLOCK_K, BLOCK_N)
    a_step = tl.cast(a_strides[1], tl.int64) * BLOCK_K
    b_step = tl.cast(b_strides[0], tl.int64) * BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # (1) product and bias
    for start in range(0, K, BLOCK_K):
        a = tl.load(a_at, mask=(m < M) & (along_a < K - start), other=0.0)
        b = tl.load(b_at, mask=(along_b < K - start) & (n < N), other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_at += a_step
        b_at += b_step
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n * bias_strides[0], mask=n < N, other=0.0).to(tl.float32)
    # (2) activation
    at = m * c_strides[0] + n * c_strides[1]
    inside = (m < M) & (n < N)
    if SAVE_Z:
        tl.store(z_ptr + at, acc.to(z_ptr.dtype.element_ty), mask=inside)
    if KIND != "none":
        acc = activate(acc, KIND)
    tl.store(c_ptr + at, acc.to(c_ptr.dtype.element_ty), mask=inside)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    allow_tf32: bool = False,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Multiply by the transposed weight, add the bias, apply the activation.

    Arguments and results are those of `reference.linear.forward`, in float16, bfloat16 or float32,
    any strides (x is copied only if its rows are no single stride apart). float32 products are
    accurate to float32 (three tf32 products) unless `allow_tf32`; `tile` overrides the table's
    choice.
    """
    check(x, weight, bias, activation)
    supported("x", x)
    rows = _rows(x)  # (R, K)
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    y = _rows(out)  # (R, N)
    z = None
    if activation is not None:
        z = y if activation == "relu" else torch.empty_like(y)
    _gemm(rows, weight.mT, y, allow_tf32, tile, bias, z, activation)
    return out, Cache(x, weight, z, activation, bias is not None, allow_tf32)


def backward(
    dout: torch.Tensor,
    cache: Cache,
    *,
    of_x: bool = True,
    of_weight: bool = True,
    of_bias: bool = True,
    into: checks.Into = None,
    tile: Tile | None = None,
) -> Gradients:
    """Return dz = dout·f′(z), then dx = dz·W, dW = dzᵀ·x and db = Σ dz over the rows.

    Arguments and results are those of `reference.linear.backward`; `into` may have any strides and
    any dtype there is a kernel for: sums in float32 need no rounding to be kept in it. `tile`
    overrides the table's choice.
    """
    checks.floating(x=cache.x, dout=dout)
    checks.shape("dout", dout, (*cache.x.shape[:-1], len(cache.weight)))
    supported("dout", dout)
    x, weight = _rows(cache.x), cache.weight
    N, K = weight.shape
    of_bias = of_bias and cache.has_bias
    dweight, dbias = asked(
        into, dweight=(N, K) if of_weight else None, dbias=(N,) if of_bias else None
    )
    dbias = fresh(weight[:, 0]) if dbias is None and of_bias else dbias
    # (2) activation, (1) bias
    dz = _dz(_rows(dout), cache, dbias)  # (R, N)
    # (1) product, of which the bias is done
    dx = None
    if of_x:
        dx = fresh(cache.x)
        _gemm(dz, weight, _rows(dx), cache.allow_tf32, tile)
    if of_weight:
        dweight = fresh(weight) if dweight is None else dweight
        _gemm(dz.mT, x, dweight, cache.allow_tf32, tile)
    return Gradients(dx, dweight, dbias)


def _gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    allow_tf32: bool,
    tile: Tile | None,
    bias: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    activation: str | None = None,
) -> None:
    """Write f(a·b + bias) to c, and its argument to z unless that is c itself."""
    (M, K), N = a.shape, b.shape[1]
    tile = tile or choose_tile(
        M,
        N,
        a.element_size(),
        aligned=aligned(*c.stride()),
        activated=activation is not None,
        architecture=architecture(),
    )
    save_z = z is not None and z is not c
    gemm_kernel[(triton.cdiv(M, tile.block_m) * triton.cdiv(N, tile.block_n),)](
        a, b, c if bias is None else bias, c, z if save_z else c,
        a.stride(), b.stride(), (0,) if bias is None else bias.stride(), c.stride(),
        M, N, K,
        KIND=activation or "none",
        HAS_BIAS=bias is not None,
        SAVE_Z=save_z,
        PRECISION=float32_products(allow_tf32),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip


def _dz(dout: torch.Tensor, cache: Cache, dbias: torch.Tensor | None) -> torch.Tensor:
    """Return dz (R, N), which is dout where there is no activation; write db, if asked for."""
    if cache.activation is None and dbias is None:
        return dout
    dz = dout if cache.z is None else torch.empty_like(cache.z)
    differentiate(dout, cache.z, dz, cache.activation, None, dbias, SHARES)
    return dz


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return x as rows, a view of it if they are a single stride apart."""
    return x.reshape(-1, x.shape[-1])
