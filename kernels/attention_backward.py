"""The backward of attention, two kernels without atomics: the same bits in every run.

The weights are recomputed from lse. One kernel holds a tile of keys and sums dk and dv over the
queries of all heads that share them; the other holds a tile of queries and sums dq over the keys; a
small third one computes Δ for both, and the gradient of the sinks. Operations: 14·M·N·D per head,
half of it where causal; with more than 256 features the scores are recomputed for every 128
(`attention`'s `MOST_SUMMED`, `SLICE`). No M×N matrix is stored.

`B` batch, `H` heads, `G` of them for each KV head, `M` queries, `N` keys, `D` head_dim. Steps
(5)–(9) are those of the reference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twofold.kernels import dropout
from twofold.kernels.attention_blocks import places, tile_at
from twofold.kernels.attention_features import (
    add_weighted,
    dot_rows,
    features,
    load_features,
    scaled,
    store_features,
    zeros,
)
from twofold.kernels.attention_order import place_in_groups
from twofold.kernels.attention_parts import (
    LOG2_E,
    load,
    place,
    products,
    rows_at,
    scores,
    seen,
    sequence,
    through_scores,
    tile_start,
    tiles_seen,
)


@triton.jit
def delta_kernel(
    out_ptr, dout_ptr,  # (B, H, M, D)
    dlse_ptr,  # (B, H, M) float32, or None
    delta_ptr, lse_ptr,  # (B, H, M) float32
    sinks_ptr, shares_ptr,  # (H,), (B, H, blocks) float32, or None
    out_strides, dout_strides,
    H, M,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(7) Δ = rowsum(dout∘out) − dlse, what the normalisation takes away from dP."""
    block, b, h = place(tl.program_id(0), tl.cdiv(M, BLOCK_M), H)
    first = block * BLOCK_M
    m, d = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_D)[None, :]
    out = load(out_ptr, out_strides, b, h, first, m, d, M, D).to(tl.float32)
    dout = load(dout_ptr, dout_strides, b, h, first, m, d, M, D).to(tl.float32)
    delta = tl.sum(out * dout, axis=1)  # (BLOCK_M,)
    i = first + tl.arange(0, BLOCK_M)
    row_at = (b * H + h).to(tl.int64) * M + i
    if dlse_ptr is not None:
        delta -= tl.load(dlse_ptr + row_at, mask=i < M, other=0.0)
    tl.store(delta_ptr + row_at, delta, mask=i < M)
    if sinks_ptr is not None:
        # (8) dsink = −Σ exp(sink − lse)·Δ; each program sums over its own rows
        sink = tl.load(sinks_ptr + h).to(tl.float32)
        lse = tl.load(lse_ptr + row_at, mask=i < M, other=float("inf"))
        share = tl.sum(weights_again(sink * LOG2_E, lse) * delta)
        tl.store(shares_ptr + (b * H + h) * tl.cdiv(M, BLOCK_M) + block, share)


@triton.jit
def weights_again(s, lse):
    """(5) P = exp(S − lse) again, from base-2 scores and the natural-log lse, broadcast to them."""
    return tl.exp2(s - tl.where(lse == -float("inf"), 0.0, lse * LOG2_E))


@triton.jit(do_not_specialize=["threshold"])
def dk_dv_kernel(
    x,  # Call
    dout_ptr,  # (B, H, M, D)
    lse_ptr, delta_ptr,  # (B, H, M) float32
    dk_ptr, dv_ptr,  # (B, H/G, N, D)
    dout_strides, dk_strides, dv_strides,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum BLOCK_D + TAIL_D features of dk and dv of BLOCK_N keys over all queries.

    Tiles are (keys, queries).
    """
    heads = x.H // x.G
    blocks = tl.cdiv(x.longest_k, BLOCK_N)
    block, b, kv_head = place_in_groups(tl.program_id(0), blocks, heads, x.together)
    block = blocks - 1 - block  # here the first blocks have the most work
    seq = sequence(x, b)
    first = block * BLOCK_N
    if x.k_starts is not None:
        if first >= seq.N:
            return
    key, q_end, k_end = seq.k_first + first, seq.q_first + seq.M, seq.k_first + seq.present
    n, m = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_M)[None, :]
    d = features(tl.program_id(1) * BLOCK_D, BLOCK_D, TAIL_D)
    columns = first + n
    if DROPOUT:
        seed = tl.load(x.seed)
    if CHUNK_D >= D:
        k = load_features(x.k, x.k_strides, seq.batch, kv_head, key, n, d, k_end, D)
        v = load_features(x.v, x.v_strides, seq.batch, kv_head, key, n, d, k_end, D)
    dk = zeros(BLOCK_N, BLOCK_D, TAIL_D)
    dv = zeros(BLOCK_N, BLOCK_D, TAIL_D)
    # Key j is seen by queries j − shift − ahead … j − shift + behind. Padding keys need no mask:
    # they affect only their own rows of dk and dv, which are stored as 0. Nor do queries past the
    # end, in the last tile: their q and dout are loaded as 0.
    length = tl.where(first < seq.present, tl.cdiv(seq.M, BLOCK_M) * BLOCK_M, 0)
    last = tl.minimum(first + BLOCK_N, seq.present) - 1
    begin, full, stop, end = seen(
        first - seq.shift, last - seq.shift, x.ahead, x.behind, length, BLOCK_M
    )
    for g in range(x.G):
        h = kv_head * x.G + g
        from_, in_, out_, to = places(x, b, h, block, begin, full, stop, end, BLOCK_M)
        # EDGE 0: tiles whose queries all see every key of the block; 1: tiles that need the mask.
        for EDGE in tl.static_range(1 if x.behind is None and x.ahead is None else 2):
            for i in range(tiles_seen(from_, in_, out_, to, x.ahead, EDGE, BLOCK_M)):
                start = tile_start(i, from_, in_, out_, x.ahead, EDGE, BLOCK_M)
                start = tile_at(x, b, h, block, start, BLOCK_M)
                query, rows = seq.q_first + start, start + m
                q = load_features(
                    x.q, x.q_strides, seq.batch, h, query, tl.trans(m), d, q_end, D
                )  # (BLOCK_M, BLOCK_D)
                dout = load_features(
                    dout_ptr, dout_strides, seq.batch, h, query, tl.trans(m), d, q_end, D
                )  # (BLOCK_M, BLOCK_D)
                row_at = rows_at(x, seq, h, rows)
                lse = tl.load(lse_ptr + row_at, mask=rows < seq.M, other=0.0)  # (1, BLOCK_M)
                delta = tl.load(delta_ptr + row_at, mask=rows < seq.M, other=0.0)
                # (5) P = exp(S − lse), again
                if CHUNK_D >= D:
                    product = dot_rows(k, q, PRECISION)  # (BLOCK_N, BLOCK_M)
                else:
                    product = products(
                        x.k, x.k_strides, kv_head, x.q, x.q_strides, h, seq.batch,
                        key, n, k_end, query, tl.trans(m), q_end, D, CHUNK_D, PRECISION,
                    )  # (BLOCK_N, BLOCK_M)  # fmt: skip
                s = scores(product, x, b, seq, h, rows, columns, EDGE, SCORE)
                p = weights_again(s, lse)
                # (6) dP = (dout·vᵀ)∘X
                if CHUNK_D >= D:
                    dp = dot_rows(v, dout, PRECISION)  # (BLOCK_N, BLOCK_M)
                else:
                    dp = products(
                        x.v, x.v_strides, kv_head, dout_ptr, dout_strides, h, seq.batch,
                        key, n, k_end, query, tl.trans(m), q_end, D, CHUNK_D, PRECISION,
                    )  # (BLOCK_N, BLOCK_M)  # fmt: skip
                dropped = p
                if DROPOUT:
                    keep = tl.trans(
                        dropout.attention_keep(
                            x, seed, b, h, tl.trans(rows), first, threshold, BLOCK_N
                        )
                    )  # (BLOCK_N, BLOCK_M)
                    dropped = tl.where(keep, p * dropout_scale, 0.0)
                    dp = tl.where(keep, dp * dropout_scale, 0.0)
                # (8) dS = P∘(dP − Δ), dZ = φ′∘dS
                ds = through_scores(
                    p * (dp - delta), p, product, x, b, h, rows, columns, SCORE, SCORE_SLOPE
                )
                # (9) dv = (P∘X)ᵀ·dout, dk = scale·dZᵀ·q; both (BLOCK_N, BLOCK_D)
                dv = add_weighted(dv, dropped, dout, PRECISION)
                dk = add_weighted(dk, ds, q, PRECISION)
    dk = scaled(dk, x.softmax_scale)  # of (9), once
    live, inside = columns < seq.present, columns < seq.N
    store_features(dk_ptr, dk_strides, seq.batch, kv_head, key, n, d, inside, dk, D, live)
    store_features(dv_ptr, dv_strides, seq.batch, kv_head, key, n, d, inside, dv, D, live)


@triton.jit(do_not_specialize=["threshold"])
def dq_kernel(
    x,  # Call
    dout_ptr,  # (B, H, M, D)
    lse_ptr, delta_ptr,  # (B, H, M) float32
    dq_ptr,  # (B, H, M, D)
    dout_strides, dq_strides,
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    SCORE_SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum BLOCK_D + TAIL_D features of dq of BLOCK_M queries over the keys they see."""
    blocks = tl.cdiv(x.longest_q, BLOCK_M)
    block, b, h = place_in_groups(tl.program_id(0), blocks, x.H, x.together)
    seq = sequence(x, b)
    kv_head = h // x.G
    first = block * BLOCK_M
    if x.q_starts is not None:
        if first >= seq.M:
            return
    query, q_end, k_end = seq.q_first + first, seq.q_first + seq.M, seq.k_first + seq.present
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    d = features(tl.program_id(1) * BLOCK_D, BLOCK_D, TAIL_D)
    rows = first + m
    if CHUNK_D >= D:
        q = load_features(x.q, x.q_strides, seq.batch, h, query, m, d, q_end, D)
        dout = load_features(dout_ptr, dout_strides, seq.batch, h, query, m, d, q_end, D)
    row_at = rows_at(x, seq, h, rows)
    lse = tl.load(lse_ptr + row_at, mask=rows < seq.M, other=0.0)  # (BLOCK_M, 1)
    delta = tl.load(delta_ptr + row_at, mask=rows < seq.M, other=0.0)
    dq = zeros(BLOCK_M, BLOCK_D, TAIL_D)
    last = tl.minimum(first + BLOCK_M, seq.M) - 1
    begin, full, stop, end = seen(
        first + seq.shift, last + seq.shift, x.behind, x.ahead, seq.present, BLOCK_N
    )
    begin, full, stop, end = places(x, b, h, block, begin, full, stop, end, BLOCK_N)
    # EDGE 0: tiles that every query sees in full; 1: tiles that need the mask.
    for EDGE in tl.static_range(2):
        for i in range(tiles_seen(begin, full, stop, end, x.behind, EDGE, BLOCK_N)):
            start = tile_start(i, begin, full, stop, x.behind, EDGE, BLOCK_N)
            start = tile_at(x, b, h, block, start, BLOCK_N)
            key, columns = seq.k_first + start, start + n
            k = load_features(
                x.k, x.k_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D
            )  # (BLOCK_N, BLOCK_D)
            # (5) P = exp(S − lse), again
            if CHUNK_D >= D:
                product = dot_rows(q, k, PRECISION)  # (BLOCK_M, BLOCK_N)
            else:
                product = products(
                    x.q, x.q_strides, h, x.k, x.k_strides, kv_head, seq.batch,
                    query, m, q_end, key, tl.trans(n), k_end, D, CHUNK_D, PRECISION,
                )  # fmt: skip
            s = scores(product, x, b, seq, h, rows, columns, EDGE, SCORE)
            p = weights_again(s, lse)
            # (6) dP = (dout·vᵀ)∘X
            if CHUNK_D >= D:
                v = load_features(
                    x.v, x.v_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D
                )
                dp = dot_rows(dout, v, PRECISION)  # (BLOCK_M, BLOCK_N)
            else:
                dp = products(
                    dout_ptr, dout_strides, h, x.v, x.v_strides, kv_head, seq.batch,
                    query, m, q_end, key, tl.trans(n), k_end, D, CHUNK_D, PRECISION,
                )  # fmt: skip
            if DROPOUT:
                # Registers are scarce: the seed is read for each tile; volatile forbids hoisting.
                seed = tl.load(x.seed, volatile=True)
                keep = dropout.attention_keep(x, seed, b, h, rows, start, threshold, BLOCK_N)
                dp = tl.where(keep, dp * dropout_scale, 0.0)
            # (8) dS = P∘(dP − Δ), dZ = φ′∘dS
            ds = through_scores(
                p * (dp - delta), p, product, x, b, h, rows, columns, SCORE, SCORE_SLOPE
            )
            # (9) dq = scale·dZ·k, (BLOCK_M, BLOCK_D)
            dq = add_weighted(dq, ds, k, PRECISION)
    dq = scaled(dq, x.softmax_scale)  # of (9), once
    store_features(dq_ptr, dq_strides, seq.batch, h, query, m, d, rows < seq.M, dq, D)
