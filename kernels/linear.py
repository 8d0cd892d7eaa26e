"""A linear layer: one matrix product with strides, and activation and bias in its epilogue.

The same kernel computes all three products, a transpose being no more than a swap of strides:

    y = f(x·Wᵀ + b),   dx = dz·W,   dW = dzᵀ·x

Bytes, for elements of b bytes: forward reads x and W and writes y; with an activation also z, the
input of the activation, which costs R·N·b and saves backward a product of 2·R·N·K operations.
(ReLU's derivative can be read off y, and z is not written where there will be no backward.)
Backward needs dz = dout·f′(z) in two products, each of which loads it once for every column of its
tiles: it is computed in a pass of its own, 3·R·N·b, not again and again in the prologue of both.
The same pass, which is `activation`'s, sums db over shares of the rows: no atomics, the same bits
in every run. Without an activation dz is dout, and the pass only reads it; without a bias, or with
a frozen one, there is no pass.

The programs that run at one time form compact groups of tiles, so that they share what L2 holds.
Where dW has fewer tiles than the machine has room for, the rows that each adds up are split among
several programs, and a second kernel adds what they wrote, 8·N·K bytes for each (`linear_tiles`):
no atomics there either.

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
from twofold.kernels.layout import checked_into, fresh
from twofold.kernels.linear_tiles import PARTS, WIDE, Tile, choose, choose_splits
from twofold.kernels.precision import float32_products, supported
from twofold.reference import checks
from twofold.reference.linear import check

# The most shares into which the rows are split to sum db. Each share has a program and a partial
# sum for every 128 columns: with 3072 columns 1,536 programs, enough to fill a GPU.
SHARES = 64
BLOCK = 1024  # elements of c that a program adds up if features are split


class Cache(NamedTuple):
    """What `backward` needs: `z` is the activation's input or, for ReLU, its output.

    It is None without an activation, and if forward was told not to keep it.
    """

    x: torch.Tensor
    weight: torch.Tensor
    z: torch.Tensor | None  # (R, N)
    activation: str | None
    has_bias: bool
    allow_tf32: bool


class Gradients(NamedTuple):
    """Gradients of the arguments; None for those not computed, and for `dbias` without a bias."""

    dx: torch.Tensor | None
    dweight: torch.Tensor | None
    dbias: torch.Tensor | None


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
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """c = f(a·b + bias), one tile of it; if SPLIT, sums over some features, c (splits, M, N)."""
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    i, j = tl.swizzle2d(program // blocks_n, program % blocks_n, blocks_m, blocks_n, GROUP_M)
    m = (i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    n = (j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    features = tl.cdiv(tl.cdiv(K, BLOCK_K), tl.num_programs(1)) * BLOCK_K  # of a split
    begin = tl.program_id(1) * features
    k = begin + tl.arange(0, BLOCK_K)
    along_a, along_b = k[None, :].to(tl.int64), k[:, None].to(tl.int64)
    a_at = a_ptr + m * a_strides[0] + along_a * a_strides[1]  # (BLOCK_M, BLOCK_K)
    b_at = b_ptr + along_b * b_strides[0] + n * b_strides[1]  # (BLOCK_K, BLOCK_N)
    a_step = tl.cast(a_strides[1], tl.int64) * BLOCK_K
    b_step = tl.cast(b_strides[0], tl.int64) * BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    # (1) product
    for start in range(0, features, BLOCK_K):
        a = tl.load(a_at, mask=(m < M) & (along_a < K - start), other=0.0)
        b = tl.load(b_at, mask=(along_b < K - start) & (n < N), other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_at += a_step
        b_at += b_step
    if SPLIT:
        c_ptr += tl.program_id(1).to(tl.int64) * M * N
    finish(
        acc, bias_ptr, c_ptr, z_ptr, bias_strides, c_strides, m, j.to(tl.int64) * BLOCK_N, M, N,
        KIND, HAS_BIAS, SAVE_Z, PARTS,
    )  # fmt: skip


@triton.jit
def halves(x):
    """Return the left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def finish(
    acc, bias_ptr, c_ptr, z_ptr, bias_strides, c_strides, m, first, M, N,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SAVE_Z: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Add the bias to columns from `first` on, activate and store, in PARTS one after the other."""
    if PARTS > 1:
        left, right = halves(acc)
        finish(
            left, bias_ptr, c_ptr, z_ptr, bias_strides, c_strides, m, first, M, N,
            KIND, HAS_BIAS, SAVE_Z, PARTS // 2,
        )  # fmt: skip
        finish(
            right, bias_ptr, c_ptr, z_ptr, bias_strides, c_strides, m, first + left.shape[1], M, N,
            KIND, HAS_BIAS, SAVE_Z, PARTS // 2,
        )  # fmt: skip
    else:
        n = (first + tl.arange(0, acc.shape[1]))[None, :]
        # (1) bias
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


@triton.jit(do_not_specialize=["splits"])
def add_splits_kernel(
    sums_ptr,  # (splits, M, N) float32
    c_ptr,  # (M, N)
    c_strides,
    size: tl.int64,  # M·N
    N,
    splits,
    BLOCK: tl.constexpr,
):
    """(1) product: BLOCK elements of c, each the sum over the splits."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        total += tl.load(sums_ptr + split * size + at, mask=inside, other=0.0)
    to = c_ptr + at // N * c_strides[0] + at % N * c_strides[1]
    tl.store(to, total.to(c_ptr.dtype.element_ty), mask=inside)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    keep: bool = True,
    allow_tf32: bool = False,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, Cache]:
    """Multiply by the transposed weight, add the bias, apply the activation.

    Arguments and results are those of `reference.linear.forward`, in float16, bfloat16 or float32,
    any strides (x is copied only if its rows do not have one common stride). float32 products are
    accurate to float32 (three tf32 products) unless `allow_tf32`; `tile` overrides the table's
    choice.
    """
    check(x, weight, bias, activation)
    checks.flag("keep", keep)
    supported("x", x)
    rows = _rows(x)  # (R, K)
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    y = _rows(out)  # (R, N)
    z = None
    if activation is not None and keep:
        z = y if activation == "relu" else torch.empty_like(y)
    product(rows, weight.mT, y, allow_tf32, tile, bias, z, activation)
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
    any dtype that kernels take: float32 keeps the sums unrounded. `tile` overrides the table's
    choice.
    """
    checks.flags(of_x=of_x, of_weight=of_weight, of_bias=of_bias)
    checks.floating(x=cache.x, dout=dout)
    checks.shape("dout", dout, (*cache.x.shape[:-1], len(cache.weight)))
    supported("dout", dout)
    x, weight = _rows(cache.x), cache.weight
    N, K = weight.shape
    of_bias = of_bias and cache.has_bias
    dweight, dbias = checked_into(
        into, dweight=(N, K) if of_weight else None, dbias=(N,) if of_bias else None
    )
    if cache.activation is not None:
        checks.kept("cache.z", cache.z)
    dbias = fresh(weight[:, 0]) if dbias is None and of_bias else dbias
    # (2) activation, (1) bias
    dz = _dz(_rows(dout), cache, dbias)  # (R, N)
    # (1) product; the bias is done
    dx = None
    if of_x:
        dx = fresh(cache.x)
        product(dz, weight, _rows(dx), cache.allow_tf32, tile)
    if of_weight:
        dweight = fresh(weight) if dweight is None else dweight
        product(dz.mT, x, dweight, cache.allow_tf32, tile, whole=False)
    return Gradients(dx, dweight, dbias)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    allow_tf32: bool = False,
    tile: Tile | None = None,
    bias: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    whole: bool = True,
    splits: int | None = None,
) -> None:
    """Write f(a·b + bias) to c (M, N), and its argument to z unless that is c itself.

    Arguments are not checked. Without bias and activation, features may be split unless `whole`;
    `tile` and `splits` override the choice.
    """
    (M, K), N, size = a.shape, b.shape[1], a.element_size()
    if tile is None:
        tile, chosen = choose(
            M,
            N,
            K,
            size,
            aligned=aligned(*c.stride()),
            whole=whole,
            activated=activation is not None,
            architecture=architecture(),
        )
    else:
        tile, chosen = choose_splits(M, N, K, tile, size, whole=whole)
    splits = splits or chosen
    sums = c if splits == 1 else c.new_empty((splits, M, N), dtype=torch.float32)
    save_z = z is not None and z is not c
    gemm_kernel[(triton.cdiv(M, tile.block_m) * triton.cdiv(N, tile.block_n), splits)](
        a, b, c if bias is None else bias, sums, z if save_z else c,
        a.stride(), b.stride(), (0,) if bias is None else bias.stride(), sums.stride()[-2:],
        M, N, K,
        KIND=activation or "none",
        HAS_BIAS=bias is not None,
        SAVE_Z=save_z,
        PRECISION=float32_products(allow_tf32),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        PARTS=PARTS if activation and tile.block_n >= WIDE else 1,
        SPLIT=splits > 1,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    if splits > 1:
        add_splits_kernel[(triton.cdiv(M * N, BLOCK),)](
            sums, c, c.stride(), M * N, N, splits, BLOCK=BLOCK
        )


def _dz(dout: torch.Tensor, cache: Cache, dbias: torch.Tensor | None) -> torch.Tensor:
    """Return dz (R, N), which is dout without an activation; write db into dbias, if given."""
    if cache.activation is None and dbias is None:
        return dout
    dz = dout if cache.z is None else torch.empty_like(cache.z)
    differentiate(dout, cache.z, dz, cache.activation, None, dbias, SHARES)
    return dz


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return x as rows, a view of it if they have one common stride."""
    return x.reshape(-1, x.shape[-1])
