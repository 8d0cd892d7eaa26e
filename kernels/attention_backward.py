"""The backward of attention, two kernels without atomics: the same bits in every run.

The weights are computed again from lse. One kernel holds a tile of keys and sums dk and dv over the
queries, the other holds a tile of queries and sums dq over the keys; a third computes Δ for both.
Operations: 14·M·N·D per head, half of it where causal; no M×N matrix is stored.

`B` batch, `H` heads, `M` queries, `N` keys, `D` head_dim. Steps (5)–(9) are those of the reference.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from twofold.kernels import dropout
from twofold.kernels.attention_parts import (
    at,
    keys_present,
    keys_seen,
    load,
    place,
    products,
    scores,
)

LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def delta_kernel(
    out_ptr, dout_ptr,  # (B, H, M, D)
    dlse_ptr,  # (B, H, M) float32 if HAS_DLSE
    delta_ptr,  # (B, H, M) float32
    out_strides, dout_strides,
    H, M,
    D: tl.constexpr,
    HAS_DLSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(7) What the normalisation takes away from dP: Δ = Σ_d dout·out − dlse."""
    block, b, h = place(tl.program_id(0), tl.cdiv(M, BLOCK_M), H)
    first = block * BLOCK_M
    m, d = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_D)[None, :]
    out = load(out_ptr, out_strides, b, h, first, m, d, M, D).to(tl.float32)
    dout = load(dout_ptr, dout_strides, b, h, first, m, d, M, D).to(tl.float32)
    delta = tl.sum(out * dout, axis=1)
    i = first + tl.arange(0, BLOCK_M)
    row_at = (b * H + h).to(tl.int64) * M + i
    if HAS_DLSE:
        delta -= tl.load(dlse_ptr + row_at, mask=i < M, other=0.0)
    tl.store(delta_ptr + row_at, delta, mask=i < M)


@triton.jit
def weights_again(s, lse):
    """(5) Recompute normalised weights from base-2 scores and natural-log lse, broadcast alike."""
    return tl.exp2(s - tl.where(lse == -float("inf"), 0.0, lse * LOG2_E))


@triton.jit(do_not_specialize=["seed", "threshold"])
def dk_dv_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, dout_ptr, lse_ptr, delta_ptr,
    dk_ptr, dv_ptr,  # (B, H, N, D)
    q_strides, k_strides, v_strides, mask_strides, dout_strides, dk_strides, dv_strides,
    H, M, N,
    scale,  # softmax_scale·log₂e
    softmax_scale,
    seed: tl.int64,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum dk and dv of BLOCK_N keys over all queries; tiles are (keys, queries)."""
    bh = tl.program_id(0) // tl.cdiv(N, BLOCK_N)
    block, b, h = tl.program_id(0) % tl.cdiv(N, BLOCK_N), bh // H, bh % H
    first = block * BLOCK_N
    n, m = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_M)[None, :]
    d = tl.arange(0, BLOCK_D)[None, :]
    columns = first + n
    present = keys_present(lengths_ptr, b, N, HAS_LENGTHS)
    if CHUNK_D == BLOCK_D:
        k = load(k_ptr, k_strides, b, h, first, n, d, present, D)  # (BLOCK_N, BLOCK_D)
        v = load(v_ptr, v_strides, b, h, first, n, d, present, D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Queries [begin, full) see some keys of the tile, [full, M) all of them. Padding keys need no
    # mask: they only spoil their own rows of dk and dv, which are stored as 0.
    shift = N - M
    begin = 0
    full = 0
    if CAUSAL:
        begin = tl.maximum(first - shift, 0) // BLOCK_M * BLOCK_M
        full = tl.cdiv(tl.maximum(first + BLOCK_N - 1 - shift, 0), BLOCK_M) * BLOCK_M
        full = tl.minimum(tl.maximum(full, begin), tl.cdiv(M, BLOCK_M) * BLOCK_M)
    stop = tl.where(first < present, M, 0)
    for FULL in tl.static_range(0 if CAUSAL else 1, 2):
        for start in range(
            full if FULL else begin, stop if FULL else tl.minimum(full, stop), BLOCK_M
        ):
            rows = start + m
            q = load(q_ptr, q_strides, b, h, start, tl.trans(m), d, M, D)  # (BLOCK_M, BLOCK_D)
            dout = load(dout_ptr, dout_strides, b, h, start, tl.trans(m), d, M, D)
            row_at = (b * H + h).to(tl.int64) * M + rows
            lse = tl.load(lse_ptr + row_at, mask=rows < M, other=0.0)  # (1, BLOCK_M)
            delta = tl.load(delta_ptr + row_at, mask=rows < M, other=0.0)
            # (5) weights again
            if CHUNK_D == BLOCK_D:
                product = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
            else:
                product = products(
                    k_ptr, k_strides, q_ptr, q_strides, b, h,
                    first, n, present, start, tl.trans(m), M, D, BLOCK_D, CHUNK_D, PRECISION,
                )  # fmt: skip
            s = scores(
                product, mask_ptr, mask_strides, b, h, rows, columns, present, shift, M, scale,
                not FULL, CAUSAL, HAS_MASK,
            )  # fmt: skip
            p = weights_again(s, lse)
            # (6) gradient of the weights
            if CHUNK_D == BLOCK_D:
                dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
            else:
                dp = products(
                    v_ptr, v_strides, dout_ptr, dout_strides, b, h,
                    first, n, present, start, tl.trans(m), M, D, BLOCK_D, CHUNK_D, PRECISION,
                )  # fmt: skip
            dropped = p
            if DROPOUT:
                keep = tl.trans(
                    dropout.attention_keep(seed, b, h, tl.trans(rows), first, threshold, BLOCK_N)
                )  # (BLOCK_N, BLOCK_M)
                dropped = tl.where(keep, p * dropout_scale, 0.0)
                dp = tl.where(keep, dp * dropout_scale, 0.0)
            # (8) gradient of the scores
            ds = p * (dp - delta)
            # (9) gradients of the inputs
            dv = tl.dot(dropped.to(dout.dtype), dout, dv, input_precision=PRECISION)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk = tl.where(columns < present, dk * softmax_scale, 0.0)
    dv = tl.where(columns < present, dv, 0.0)
    inside = (columns < N) & (d < D)
    dk_at = at(dk_ptr, dk_strides, b, h, first, n, d)
    dv_at = at(dv_ptr, dv_strides, b, h, first, n, d)
    tl.store(dk_at, dk.to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed", "threshold"])
def dq_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, lengths_ptr, dout_ptr, lse_ptr, delta_ptr,
    dq_ptr,  # (B, H, M, D)
    q_strides, k_strides, v_strides, mask_strides, dout_strides, dq_strides,
    H, M, N,
    scale,  # softmax_scale·log₂e
    softmax_scale,
    seed: tl.int64,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum dq of BLOCK_M queries over the keys they see."""
    block, b, h = place(tl.program_id(0), tl.cdiv(M, BLOCK_M), H)
    first = block * BLOCK_M
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    d = tl.arange(0, BLOCK_D)[None, :]
    rows = first + m
    if CHUNK_D == BLOCK_D:
        q = load(q_ptr, q_strides, b, h, first, m, d, M, D)  # (BLOCK_M, BLOCK_D)
        dout = load(dout_ptr, dout_strides, b, h, first, m, d, M, D)
    row_at = (b * H + h).to(tl.int64) * M + rows
    lse = tl.load(lse_ptr + row_at, mask=rows < M, other=0.0)  # (BLOCK_M, 1)
    delta = tl.load(delta_ptr + row_at, mask=rows < M, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    present = keys_present(lengths_ptr, b, N, HAS_LENGTHS)
    shift = N - M
    full, end = keys_seen(first, shift, present, CAUSAL, BLOCK_M, BLOCK_N)
    for EDGE in tl.static_range(2):
        for start in range(full if EDGE else 0, end if EDGE else full, BLOCK_N):
            columns = start + n
            k = load(k_ptr, k_strides, b, h, start, tl.trans(n), d, present, D)
            # (5) weights again
            if CHUNK_D == BLOCK_D:
                product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            else:
                product = products(
                    q_ptr, q_strides, k_ptr, k_strides, b, h,
                    first, m, M, start, tl.trans(n), present, D, BLOCK_D, CHUNK_D, PRECISION,
                )  # fmt: skip
            s = scores(
                product, mask_ptr, mask_strides, b, h, rows, columns, present, shift, M, scale,
                EDGE, CAUSAL, HAS_MASK,
            )  # fmt: skip
            p = weights_again(s, lse)
            # (6) gradient of the weights
            if CHUNK_D == BLOCK_D:
                v = load(v_ptr, v_strides, b, h, start, tl.trans(n), d, present, D)
                dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
            else:
                dp = products(
                    dout_ptr, dout_strides, v_ptr, v_strides, b, h,
                    first, m, M, start, tl.trans(n), present, D, BLOCK_D, CHUNK_D, PRECISION,
                )  # fmt: skip
            if DROPOUT:
                keep = dropout.attention_keep(seed, b, h, rows, start, threshold, BLOCK_N)
                dp = tl.where(keep, dp * dropout_scale, 0.0)
            # (8) gradient of the scores
            ds = p * (dp - delta)
            # (9) gradients of the inputs
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    dq_at = at(dq_ptr, dq_strides, b, h, first, m, d)
    inside = (rows < M) & (d < D)
    tl.store(dq_at, (dq * softmax_scale).to(dq_ptr.dtype.element_ty), mask=inside)
