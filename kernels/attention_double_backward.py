"""The backward of attention's backward, three kernels without atomics: the same bits in every run.

Everything of size M×N is recomputed, tile by tile. The first kernel sums over the keys what they
have in common for each query, three float32 numbers: Δ, g and c. With those, a tile of queries sums
dq and ddout over the keys, and a tile of keys sums dk and dv over the queries of all heads that
share them. Saved by forward: lse. Operations: 48·M·N·D per head, half of it where causal, 14 of
them for the three numbers. With more than 256 features (128 for dropout together with a mask or
with what a `score_mod` reads) a program sums 64, and recomputes the tiles of size M×N for each such
part.

Δ comes before c, in a pass of its own, so that c sums centred numbers instead of being a difference
of large sums. In half precision this Δ is also more accurate than one from `out`, which was
rounded.

All tensors of queries must share one set of strides, and so must those of keys, with rows that
begin at multiples of 16 elements; otherwise they are copied: M·D numbers, beside products of M·N·D.
Separate addresses would take too many registers. For rotary positions, (0), q, k, ddq and ddk are
rotated once, into copies, instead of at every read.

The tiles of size M×N are computed in `attention_double_backward_parts`. `B` batch, `H` heads,
`G` of them for each KV head, `M` queries, `N` keys, `D` head_dim. Steps (0) and (5)–(17) are
those of the reference; all tiles are (queries, keys).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import attention_blocks
from twofold.kernels.attention import MOST_SUMMED, SLICE, Cache, constants, draws
from twofold.kernels.attention_blocks import places, tile_at
from twofold.kernels.attention_double_backward_parts import (
    Second,
    curvature_terms,
    gradient_tiles,
    weights,
)
from twofold.kernels.attention_double_backward_tiles import choose_tile
from twofold.kernels.attention_parts import at, call, load, place, rows_at, seen, sequence
from twofold.kernels.attention_tiles import Tile, padded
from twofold.kernels.layout import fresh, same_aligned_strides
from twofold.kernels.precision import supported
from twofold.kernels.rotary import at_positions, turn, turn_back_in_place
from twofold.reference.attention_double_backward import check
from twofold.reference.attention_scores import sizes


class Gradients(NamedTuple):
    """Gradients of q, k, v, dout and dlse, with their shapes; the last is None without a dlse."""

    dq: torch.Tensor
    dk: torch.Tensor
    dv: torch.Tensor
    ddout: torch.Tensor
    ddlse: torch.Tensor | None = None


@triton.jit(do_not_specialize=["threshold"])
def rows_kernel(
    x,  # Call
    y,  # Second
    dlse_ptr,  # (B, H, M) float32, or None
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_SLOPE: tl.constexpr,
    SCORE_BEND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum Δ, g and c of BLOCK_M queries over the keys they see."""
    block, b, h = place(tl.program_id(0), tl.cdiv(x.longest_q, BLOCK_M), x.H)
    seq = sequence(x, b)
    first = block * BLOCK_M
    if x.q_starts is not None:
        if first >= seq.M:
            return
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    row_at, inside = rows_at(x, seq, h, first + m), first + m < seq.M
    lse = tl.load(y.lse + row_at, mask=inside, other=0.0)  # (BLOCK_M, 1)
    dlse = tl.zeros([BLOCK_M, 1], tl.float32)
    if dlse_ptr is not None:
        dlse = tl.load(dlse_ptr + row_at, mask=inside, other=0.0)
    last = tl.minimum(first + BLOCK_M, seq.M) - 1
    begin, full, stop, end = seen(
        first + seq.shift, last + seq.shift, x.behind, x.ahead, seq.present, BLOCK_N
    )
    begin, full, stop, end = places(x, b, h, block, begin, full, stop, end, BLOCK_N)
    # (7) Δ = rowsum(P∘dP) − dlse
    delta = tl.zeros([BLOCK_M, 1], tl.float32)
    for i in range(begin, end, BLOCK_N):
        start = tile_at(x, b, h, block, i, BLOCK_N)
        product, p, dropped, dp = weights(
            x, y, seq, b, h, first, m, start, n, lse, threshold, dropout_scale,
            D, DROPOUT, SCORE, PRECISION, CHUNK_D,
        )  # fmt: skip
        delta += tl.sum(p * dp, axis=1, keep_dims=True)
    delta -= dlse
    g = tl.zeros([BLOCK_M, 1], tl.float32)
    c = tl.zeros([BLOCK_M, 1], tl.float32)
    for i in range(begin, end, BLOCK_N):
        start = tile_at(x, b, h, block, i, BLOCK_N)
        product, p, dropped, dp = weights(
            x, y, seq, b, h, first, m, start, n, lse, threshold, dropout_scale,
            D, DROPOUT, SCORE, PRECISION, CHUNK_D,
        )  # fmt: skip
        a, gs, e, slope, curvature = curvature_terms(
            product, p, x, y, seq, b, h, first, m, start, n,
            D, SCORE, SCORE_SLOPE, SCORE_BEND, PRECISION, CHUNK_D,
        )  # fmt: skip
        # (11) ddlse = g = rowsum(P∘G)
        g += tl.sum(p * gs, axis=1, keep_dims=True)
        # (13) c = rowsum(dS∘G + P∘X∘E) − g·dlse
        c += tl.sum(p * (dp - delta) * gs + dropped * e, axis=1, keep_dims=True)
    tl.store(y.delta + row_at, delta, mask=inside)
    tl.store(y.g + row_at, g, mask=inside)
    tl.store(y.c + row_at, c - g * dlse, mask=inside)


@triton.jit(do_not_specialize=["threshold"])
def queries_kernel(
    x,  # Call
    y,  # Second
    dq_ptr, ddout_ptr,  # (B, H, M, D)
    dq_strides, ddout_strides,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_SLOPE: tl.constexpr,
    SCORE_BEND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum BLOCK_D features of dq and ddout of BLOCK_M queries over the keys they see."""
    block, b, h = place(tl.program_id(0), tl.cdiv(x.longest_q, BLOCK_M), x.H)
    seq = sequence(x, b)
    kv_head = h // x.G
    first = block * BLOCK_M
    if x.q_starts is not None:
        if first >= seq.M:
            return
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    query, k_end = seq.q_first + first, seq.k_first + seq.present
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    ddout = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = tl.minimum(first + BLOCK_M, seq.M) - 1
    begin, full, stop, end = seen(
        first + seq.shift, last + seq.shift, x.behind, x.ahead, seq.present, BLOCK_N
    )
    begin, full, stop, end = places(x, b, h, block, begin, full, stop, end, BLOCK_N)
    for i in range(begin, end, BLOCK_N):
        start = tile_at(x, b, h, block, i, BLOCK_N)
        dropped, dz, r, u = gradient_tiles(
            x, y, seq, b, h, first, m, start, n, threshold, dropout_scale,
            D, DROPOUT, SCORE, SCORE_SLOPE, SCORE_BEND, PRECISION, CHUNK_D,
        )  # fmt: skip
        key = seq.k_first + start
        # (16) ∂ℓ/∂q = scale·(U·k + dZ·ddk), ∂ℓ/∂dout = R·v + (P∘X)·ddv; (BLOCK_M, BLOCK_D)
        k = load(x.k, x.k_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D)
        dq = tl.dot(u, k, dq, input_precision=PRECISION)
        ddk = load(y.ddk, x.k_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D)
        dq = tl.dot(dz, ddk, dq, input_precision=PRECISION)
        v = load(x.v, x.k_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D)
        ddout = tl.dot(r, v, ddout, input_precision=PRECISION)
        ddv = load(y.ddv, x.k_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D)
        ddout = tl.dot(dropped, ddv, ddout, input_precision=PRECISION)
    inside = (first + m < seq.M) & (d < D)
    dq_at = at(dq_ptr, dq_strides, seq.batch, h, query, m, d)
    ddout_at = at(ddout_ptr, ddout_strides, seq.batch, h, query, m, d)
    tl.store(dq_at, (dq * x.softmax_scale).to(dq_ptr.dtype.element_ty), mask=inside)
    tl.store(ddout_at, ddout.to(ddout_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["threshold"])
def keys_kernel(
    x,  # Call
    y,  # Second
    dk_ptr, dv_ptr,  # (B, H/G, N, D)
    dk_strides, dv_strides,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_SLOPE: tl.constexpr,
    SCORE_BEND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum BLOCK_D features of dk and dv of BLOCK_N keys over all queries that see them."""
    heads, blocks = x.H // x.G, tl.cdiv(x.longest_k, BLOCK_N)
    block, b = tl.program_id(0) % blocks, tl.program_id(0) // blocks // heads
    kv_head = tl.program_id(0) // blocks % heads
    seq = sequence(x, b)
    start = block * BLOCK_N
    if x.k_starts is not None:
        if start >= seq.N:
            return
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    key, q_end = seq.k_first + start, seq.q_first + seq.M
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Key j is seen by queries j − shift − ahead … j − shift + behind. In the last tile, those past
    # the end have weights, but add 0.
    length = tl.where(start < seq.present, seq.M, 0)
    last = tl.minimum(start + BLOCK_N, seq.present) - 1
    begin, full, stop, end = seen(
        start - seq.shift, last - seq.shift, x.ahead, x.behind, length, BLOCK_M
    )
    for group in range(x.G):
        h = kv_head * x.G + group
        from_, in_, out_, to = places(x, b, h, block, begin, full, stop, end, BLOCK_M)
        for i in range(from_, to, BLOCK_M):
            first = tile_at(x, b, h, block, i, BLOCK_M)
            dropped, dz, r, u = gradient_tiles(
                x, y, seq, b, h, first, m, start, n, threshold, dropout_scale,
                D, DROPOUT, SCORE, SCORE_SLOPE, SCORE_BEND, PRECISION, CHUNK_D,
            )  # fmt: skip
            query = seq.q_first + first
            # (16) ∂ℓ/∂k = scale·(Uᵀ·q + dZᵀ·ddq), ∂ℓ/∂v = Rᵀ·dout; (BLOCK_N, BLOCK_D)
            q = load(x.q, x.q_strides, seq.batch, h, query, m, d, q_end, D)
            dk = tl.dot(tl.trans(u), q, dk, input_precision=PRECISION)
            ddq = load(y.ddq, x.q_strides, seq.batch, h, query, m, d, q_end, D)
            dk = tl.dot(tl.trans(dz), ddq, dk, input_precision=PRECISION)
            dout = load(y.dout, x.q_strides, seq.batch, h, query, m, d, q_end, D)
            dv = tl.dot(tl.trans(r), dout, dv, input_precision=PRECISION)
    columns = start + tl.trans(n)
    inside = (columns < seq.N) & (d < D)
    dk_at = at(dk_ptr, dk_strides, seq.batch, kv_head, key, tl.trans(n), d)
    dv_at = at(dv_ptr, dv_strides, seq.batch, kv_head, key, tl.trans(n), d)
    tl.store(dk_at, (dk * x.softmax_scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


def backward(
    ddq: torch.Tensor,
    ddk: torch.Tensor,
    ddv: torch.Tensor,
    dout: torch.Tensor,
    cache: Cache,
    dlse: torch.Tensor | None = None,
    *,
    tile: Tile | None = None,
) -> Gradients:
    """Return the gradients of the inputs from which `attention.backward` computed dq, dk and dv.

    Arguments and results are those of `reference.attention_double_backward.backward`, in any
    strides; `tile` overrides the table's choice.
    """
    rotary = cache.options.rotary
    check(ddq, ddk, ddv, dout, dlse, cache.q, cache.k, cache.options)
    supported("dout", dout)
    # (0) queries and keys at their positions; R_q·ddq and R_k·ddk in place of ddq and ddk
    q, k, options = at_positions(cache.q, cache.k, cache.options)
    (B, H, M, D), (K, N) = q.shape, k.shape[1:3]
    if rotary is not None:
        ddq, ddk = turn(ddq, *rotary.of_q), turn(ddk, *rotary.of_k)
    q, dout, ddq = same_aligned_strides(q, dout, ddq)
    k, v, ddk, ddv = same_aligned_strides(k, cache.v, ddk, ddv)
    dq, dk, dv, ddout = (fresh(x) for x in (q, k, v, dout))
    delta, g, c = torch.empty((3, B, H, M), dtype=torch.float32, device=q.device)
    x = call(q, k, v, cache.softmax_scale, options)
    y = Second(dout, ddq, ddk, ddv, cache.lse, delta, g, c)
    tile = tile or choose_tile(D, q.element_size())
    by_queries = (attention_blocks.over_keys(x, tile), y)
    by_keys = (attention_blocks.over_queries(x, tile), y)
    mod = options.score_mod
    how = {
        **draws(options),
        **constants(q, options, cache.allow_tf32, tile),
        "SCORE_SLOPE": None if mod is None else mod.derivative,
        "SCORE_BEND": None if mod is None else mod.second_derivative,
    }
    # Beside dropout's draws, arrays that a function of the scores reads count as a mask does.
    bytes_beside = mod is not None and len(mod.args) > 0
    masked = options.mask is not None or options.block_mask is not None or bytes_beside
    most = SLICE if options.dropout_p > 0.0 and masked else MOST_SUMMED
    summed = padded(D) if D <= most else SLICE // 2  # two sums, and twice as many factors
    slices = triton.cdiv(D, summed)
    sequences, longest_q, longest_k = sizes(options, B, M, N)
    blocks = triton.cdiv(longest_q, tile.block_m) * sequences * H
    rows_kernel[(blocks,)](*by_queries, None if dlse is None else dlse.float().contiguous(), **how)
    queries_kernel[(blocks, slices)](
        *by_queries, dq, ddout, dq.stride(), ddout.stride(), BLOCK_D=summed, **how
    )
    keys_kernel[(triton.cdiv(longest_k, tile.block_n) * sequences * K, slices)](
        *by_keys, dk, dv, dk.stride(), dv.stride(), BLOCK_D=summed, **how
    )
    # (17) rotated back: the gradients of q and k as given
    if rotary is not None:
        turn_back_in_place(dq, *rotary.of_q)
        turn_back_in_place(dk, *rotary.of_k)
    return Gradients(dq, dk, dv, ddout, None if dlse is None else g.to(dlse.dtype))
