"""Rotary positions of queries and keys in one launch, read in place; backward is the same kernel.

Bytes: q and k read once and written once, 2·(H + K)·B·L·D·b; cos and sin, read for every `block_h`
heads, mostly come from the L2 cache. Operations: 6 per pair. Only the tables are saved. Any
strides: q and k may be views of a packed projection, their gradients of the packed gradient.

`B` batch, `H` and `K` heads of q and k, `L` length, `D` head_dim, `F` = rotary_dim/2 pairs. Steps
(1)–(3) are those of the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import layout, precision
from twofold.reference import checks
from twofold.reference.attention_scores import Options
from twofold.reference.rotary import check, check_backward, check_tables


class Tile(NamedTuple):
    """Positions and heads a program works on, and with how many warps."""

    block_l: int
    block_h: int
    num_warps: int


# (most pairs, tile): the fewer pairs, the more positions fill a program's registers.
TILES = (
    (16, Tile(64, 4, 4)),
    (64, Tile(32, 4, 4)),
    (256, Tile(8, 4, 4)),
    (4096, Tile(1, 2, 4)),
)


class Cache(NamedTuple):
    """The angles, and which features pair up."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool


class Gradients(NamedTuple):
    """Gradients of q and k, with their shapes."""

    dq: torch.Tensor
    dk: torch.Tensor


def choose_tile(pairs: int) -> Tile:
    """Return the table's tile for this many pairs."""
    for most, tile in TILES:
        if pairs <= most:
            return tile
    raise ValueError(f"cos.shape[-1] is {pairs}; it must be at most {TILES[-1][0]}")


def tables(
    positions: torch.Tensor,
    rotary_dim: int,
    *,
    base: float = 10000.0,
    dtype: str | torch.dtype = "float32",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos θ and sin θ, each (L, rotary_dim/2) or (B, L, rotary_dim/2), as `reference` does.

    In float32 by default, as the kernels take them. Constants of the model, computed once, so torch
    in float64 will do.
    """
    check_tables(positions, rotary_dim, base)
    to = getattr(torch, checks.floating_dtype("dtype", dtype))
    even = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=positions.device)
    angle = positions[..., None].double() / float(base) ** (even / rotary_dim)
    return angle.cos().to(to), angle.sin().to(to)


@triton.jit
def at(ptr, strides, b, h, rows, columns):
    """Point at [b, h, rows, columns]; what may pass 2³¹ is 64 bits wide."""
    base = b * strides[0] + h.to(tl.int64) * strides[1]
    return ptr + base + rows * strides[2] + columns.to(tl.int64) * strides[3]


@triton.jit
def turn_head(
    x_ptr, y_ptr, x_strides, y_strides, b, h, rows, cos, sin, L, D, F,
    INTERLEAVED: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Turn the pairs of one head at `rows` (BLOCK_L, 1), and copy the features that have no pair.

    Both features of a pair are read before either is written, so that y may be x.
    """
    f = tl.arange(0, BLOCK_F)[None, :]
    if not INTERLEAVED:
        # (1) pairs
        second = f + F
        inside = (rows < L) & (f < F)
        x1 = tl.load(at(x_ptr, x_strides, b, h, rows, f), mask=inside, other=0.0).to(tl.float32)
        x2 = tl.load(at(x_ptr, x_strides, b, h, rows, second), mask=inside, other=0.0)
        x2 = x2.to(tl.float32)
        # (2) rotated
        y1 = (x1 * cos - x2 * sin).to(y_ptr.dtype.element_ty)
        y2 = (x1 * sin + x2 * cos).to(y_ptr.dtype.element_ty)
        tl.store(at(y_ptr, y_strides, b, h, rows, f), y1, mask=inside)
        tl.store(at(y_ptr, y_strides, b, h, rows, second), y2, mask=inside)
    else:
        # (1) pairs: neighbours are loaded and stored as one row; a stride of 2 would move 2 bytes
        # at a time.
        both = tl.arange(0, 2 * BLOCK_F)[None, :]
        inside = (rows < L) & (both < 2 * F)
        x = tl.load(at(x_ptr, x_strides, b, h, rows, both), mask=inside, other=0.0).to(tl.float32)
        x1, x2 = tl.split(x.reshape(x.shape[0], BLOCK_F, 2))
        # (2) rotated
        y = tl.interleave(x1 * cos - x2 * sin, x1 * sin + x2 * cos).to(y_ptr.dtype.element_ty)
        tl.store(at(y_ptr, y_strides, b, h, rows, both), y, mask=inside)
    # (3) features that have no pair
    if BLOCK_REST > 0:
        rest = 2 * F + tl.arange(0, BLOCK_REST)[None, :]
        inside = (rows < L) & (rest < D)
        x = tl.load(at(x_ptr, x_strides, b, h, rows, rest), mask=inside, other=0.0)
        tl.store(at(y_ptr, y_strides, b, h, rows, rest), x, mask=inside)


@triton.jit
def rotary_kernel(
    q_ptr, k_ptr,  # (B, H, L, D), (B, K, L, D)
    cos_ptr, sin_ptr,  # (B, L, F), the first stride 0 where all batches share them
    q_out_ptr, k_out_ptr,  # as q and k
    q_strides, k_strides, cos_strides, sin_strides, q_out_strides, k_out_strides,
    H, K, L, D, F,
    INTERLEAVED: tl.constexpr,
    CONJUGATE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Turn BLOCK_H heads, of queries first and then of keys, at BLOCK_L positions."""
    blocks, groups = tl.cdiv(L, BLOCK_L), tl.cdiv(H + K, BLOCK_H)
    program = tl.program_id(0)
    b = (program // (blocks * groups)).to(tl.int64)
    group = program // blocks % groups
    rows = (program % blocks).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)[:, None]
    f = tl.arange(0, BLOCK_F)[None, :]
    inside = (rows < L) & (f < F)
    cos_at = b * cos_strides[0] + rows * cos_strides[1] + f * cos_strides[2]
    sin_at = b * sin_strides[0] + rows * sin_strides[1] + f * sin_strides[2]
    cos = tl.load(cos_ptr + cos_at, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + sin_at, mask=inside, other=0.0).to(tl.float32)
    if CONJUGATE:
        sin = -sin
    for i in tl.static_range(BLOCK_H):
        h = group * BLOCK_H + i
        if h < H:
            turn_head(
                q_ptr, q_out_ptr, q_strides, q_out_strides, b, h, rows, cos, sin, L, D, F,
                INTERLEAVED, BLOCK_F, BLOCK_REST,
            )  # fmt: skip
        elif h < H + K:
            turn_head(
                k_ptr, k_out_ptr, k_strides, k_out_strides, b, h - H, rows, cos, sin, L, D, F,
                INTERLEAVED, BLOCK_F, BLOCK_REST,
            )  # fmt: skip


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
    tile: Tile | None = None,
) -> tuple[tuple[torch.Tensor, torch.Tensor], Cache]:
    """Turn the first rotary_dim features of q and k, of any strides; the others pass through.

    Arguments and results are those of `reference.rotary.forward`, of at most 4096 pairs; products
    in float32. The results lie (B, L, H, D) in memory. `tile` overrides the table's choice.
    """
    check(q, k, cos, sin, interleaved)
    precision.supported("q", q)
    cache = Cache(cos, sin, interleaved)
    turned = _beside(q), _beside(k)
    _launch(q, k, cache, turned, False, tile)
    return turned, cache


def backward(
    dq_out: torch.Tensor,
    dk_out: torch.Tensor,
    cache: Cache,
    *,
    into: checks.Into = None,
    tile: Tile | None = None,
) -> Gradients:
    """Return dq and dk: the gradients of the results, rotated by −θ.

    Arguments and results are those of `reference.rotary.backward`. `into`, (dq, dk), receives them,
    in any strides, instead of new tensors; it may be (dq_out, dk_out). `tile` overrides the table's
    choice.
    """
    check_backward(dq_out, dk_out, cache.cos)
    precision.supported("dq_out", dq_out)
    given = layout.checked_into(into, dq=tuple(dq_out.shape), dk=tuple(dk_out.shape))
    pairs = zip(given, (dq_out, dk_out), strict=True)
    grads = Gradients(*(_beside(like) if x is None else x for x, like in pairs))
    _launch(dq_out, dk_out, cache, grads, True, tile)
    return grads


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Return x (B, H, L, D) with its pairs rotated by the angles of cos and sin."""
    out = _beside(x)
    _launch(x, None, Cache(cos, sin, interleaved), (out, out), False, None)
    return out


def at_positions(
    q: torch.Tensor, k: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, Options]:
    """Return q and k, rotated if attention's options say so, and options that no longer do.

    Rotated once, not by every program that reads them: that would take registers from its products.
    """
    rotary = options.rotary
    if rotary is None:
        return q, k, options
    return turn(q, *rotary.of_q), turn(k, *rotary.of_k), options._replace(rotary=None)


def turn_back_in_place(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> None:
    """Turn the pairs of x (B, H, L, D) by the opposite angles, in place."""
    _launch(x, None, Cache(cos, sin, interleaved), (x, x), True, None)


def _launch(
    q: torch.Tensor,
    k: torch.Tensor | None,
    cache: Cache,
    out: tuple[torch.Tensor, torch.Tensor],
    conjugate: bool,
    tile: Tile | None,
) -> None:
    (B, H, L, D), F = q.shape, cache.cos.shape[-1]
    k, K = (q, 0) if k is None else (k, k.shape[1])
    cos, sin = (x.expand(B, L, F) for x in (cache.cos, cache.sin))
    tile = tile or choose_tile(F)
    programs = triton.cdiv(L, tile.block_l) * triton.cdiv(H + K, tile.block_h) * B
    rotary_kernel[(programs,)](
        q, k, cos, sin, *out,
        q.stride(), k.stride(), cos.stride(), sin.stride(), out[0].stride(), out[1].stride(),
        H, K, L, D, F,
        INTERLEAVED=bool(cache.interleaved),
        CONJUGATE=conjugate,
        BLOCK_L=tile.block_l,
        BLOCK_H=tile.block_h,
        BLOCK_F=triton.next_power_of_2(F),
        BLOCK_REST=triton.next_power_of_2(D - 2 * F) if D > 2 * F else 0,
        num_warps=tile.num_warps,
    )  # fmt: skip


def _beside(x: torch.Tensor) -> torch.Tensor:
    return layout.side_by_side(x.shape, x.dtype, x.device)
