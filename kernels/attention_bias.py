"""The gradient of attention's bias: that of the scores, summed where the bias was broadcast.

A program has a tile of the bias and goes through all the scores it was added to: all batches and
heads that share it, and all rows or columns where one row or column of it was broadcast. Nothing of
size M×N is stored but the gradient itself, and the sums have one order: the same bits in every run.
Operations: 4·M·N·D per head, half of it where causal.

`B` batch, `H` heads, `M` queries, `N` keys, `D` head_dim. Steps (5), (6) and (8) are those of the
reference; (7) is `delta_kernel`'s.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twofold.kernels import dropout
from twofold.kernels.attention_backward import weights_again
from twofold.kernels.attention_blocks import places, tile_at
from twofold.kernels.attention_parts import products, rows_at, scores, seen, sequence


@triton.jit(do_not_specialize=["threshold"])
def dbias_kernel(
    x,  # Call
    dout_ptr,  # (B, H, M, D)
    lse_ptr, delta_ptr,  # (B, H, M) float32
    dbias_ptr,  # (B or 1, H or 1, M or 1, N or 1)
    dout_strides, dbias_strides,
    B,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    OWN_B: tl.constexpr,  # whether each batch has its own bias, each head, …
    OWN_H: tl.constexpr,
    OWN_M: tl.constexpr,
    OWN_N: tl.constexpr,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of a tile of the bias."""
    program = tl.program_id(0)
    b_first, b_end, h_first, h_end = 0, B, 0, x.H
    m_first, m_end, n_first, n_end = 0, x.longest_q, 0, x.longest_k
    if OWN_N:
        n_first = program % tl.cdiv(x.longest_k, BLOCK_N) * BLOCK_N
        n_end = n_first + BLOCK_N
        program = program // tl.cdiv(x.longest_k, BLOCK_N)
    if OWN_M:
        m_first = program % tl.cdiv(x.longest_q, BLOCK_M) * BLOCK_M
        m_end = m_first + BLOCK_M
        program = program // tl.cdiv(x.longest_q, BLOCK_M)
    if OWN_H:
        h_first = program % x.H
        h_end = h_first + 1
        program = program // x.H
    if OWN_B:
        b_first = program
        b_end = program + 1
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    dbias = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if DROPOUT:
        seed = tl.load(x.seed)
    for b in range(b_first, b_end):
        seq = sequence(x, b)
        q_end, k_end = seq.q_first + seq.M, seq.k_first + seq.present
        for h in range(h_first, h_end):
            for first in range(m_first, tl.minimum(m_end, seq.M), BLOCK_M):
                query, rows = seq.q_first + first, first + m
                row_at = rows_at(x, seq, h, rows)
                lse = tl.load(lse_ptr + row_at, mask=rows < seq.M, other=0.0)  # (BLOCK_M, 1)
                delta = tl.load(delta_ptr + row_at, mask=rows < seq.M, other=0.0)
                last = tl.minimum(first + BLOCK_M, seq.M) - 1
                begin, _, _, end = seen(
                    first + seq.shift, last + seq.shift, x.behind, x.ahead, seq.present, BLOCK_N
                )
                begin, end = tl.maximum(begin, n_first), tl.minimum(end, n_end)
                row = first // BLOCK_M
                begin, _, _, end = places(x, b, h, row, begin, end, end, end, BLOCK_N)
                for i in range(begin, end, BLOCK_N):
                    start = tile_at(x, b, h, row, i, BLOCK_N)
                    key, columns = seq.k_first + start, start + n
                    # (5) P = exp(S − lse), again
                    product = products(
                        x.q, x.q_strides, h, x.k, x.k_strides, h // x.G, seq.batch,
                        query, m, q_end, key, tl.trans(n), k_end, D, CHUNK_D, PRECISION,
                    )  # (BLOCK_M, BLOCK_N)  # fmt: skip
                    s = scores(product, x, b, seq, h, rows, columns, True, SCORE)
                    p = weights_again(s, lse)
                    # (6) dP = (dout·vᵀ)∘X
                    dp = products(
                        dout_ptr, dout_strides, h, x.v, x.v_strides, h // x.G, seq.batch,
                        query, m, q_end, key, tl.trans(n), k_end, D, CHUNK_D, PRECISION,
                    )  # (BLOCK_M, BLOCK_N)  # fmt: skip
                    if DROPOUT:
                        keep = dropout.attention_keep(
                            x, seed, b, h, rows, start, threshold, BLOCK_N
                        )
                        dp = tl.where(keep, dp * dropout_scale, 0.0)
                    # (8) dbias = dS = P∘(dP − Δ)
                    dbias += p * (dp - delta)
    if not OWN_M:
        dbias = tl.sum(dbias, axis=0, keep_dims=True)
    if not OWN_N:
        dbias = tl.sum(dbias, axis=1, keep_dims=True)
    where = tl.zeros_like(dbias).to(tl.int64)
    where += tl.cast(b_first, tl.int64) * dbias_strides[0]
    where += tl.cast(h_first, tl.int64) * dbias_strides[1]
    inside = where >= 0
    if OWN_M:
        rows = m_first + m
        where += rows.to(tl.int64) * dbias_strides[2]
        inside = inside & (rows < x.longest_q)
    if OWN_N:
        columns = n_first + n
        where += columns.to(tl.int64) * dbias_strides[3]
        inside = inside & (columns < x.longest_k)
    tl.store(dbias_ptr + where, dbias.to(dbias_ptr.dtype.element_ty), mask=inside)
