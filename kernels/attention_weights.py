"""Attention's weights recomputed from lse: for inspection, or summed over the queries.

`weights` is bound by its writes: a program computes one tile of p, so that one query of a long
text keeps as many programs busy as it has tiles of keys. Bytes: 4·R·N per head written, k read
once for every tile of queries and q once for every tile of keys; operations: 2·R·N·D per head. A
tile that no query may attend to is written as zeros without a product. Packed sequences are read in
place; their weights are unpacked, a batch element for each.

`received` stores nothing but its result: a program holds a tile of keys and goes through the
queries that attend to it, as for dk and dv; one order of summation and no atomics: the same bits in
every run. Bytes: q read once for every tile of keys; operations: 2·M·N·D per head, half of it where
causal.

`B` batch, `H` heads, `G` of them for each KV head, `M` queries, `R` of them inspected, `N`
keys, `D` head_dim. Steps (0)–(3) are those of the reference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twofold.kernels import attention_blocks
from twofold.kernels.attention import constants
from twofold.kernels.attention_backward import weights_again
from twofold.kernels.attention_blocks import place_of, places, tile_at
from twofold.kernels.attention_parts import (
    at,
    call,
    load,
    place,
    products,
    rows_at,
    scores,
    seen,
    sequence,
    tile_start,
    tiles_seen,
)
from twofold.kernels.attention_tiles import Tile, aligned, padded
from twofold.kernels.attention_weights_tiles import choose_tile
from twofold.kernels.precision import supported
from twofold.kernels.rotary import at_positions
from twofold.reference.attention_scores import BlockSize, Options, ScoreMod, Window, sizes
from twofold.reference.attention_weights import check, check_rows
from twofold.reference.rotary import Rotary


@triton.jit
def load_lse(lse_ptr, x, seq, h, rows, length):
    """Load lse of queries; +∞, which makes all weights 0, for −∞ and past the last query."""
    row_at = rows_at(x, seq, h, rows)
    lse = tl.load(lse_ptr + row_at, mask=rows < length, other=float("inf"))
    return tl.where(lse == -float("inf"), float("inf"), lse)


@triton.jit
def weights_kernel(
    x,  # Call
    lse_ptr,  # (B, H, M) float32
    p_ptr,  # (B, H, R, N) float32
    p_strides,
    first_row, R,
    D: tl.constexpr,
    SCORE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Write the weights of BLOCK_M queries, R of them from `first_row` on, for BLOCK_N keys."""
    tiles = tl.cdiv(x.longest_k, BLOCK_N)
    start = tl.program_id(0) % tiles * BLOCK_N
    block, b, h = place(tl.program_id(0) // tiles, tl.cdiv(R, BLOCK_M), x.H)
    m, n = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    first = first_row + block * BLOCK_M
    rows, columns = first + m, start + n
    seq = sequence(x, b)
    end_row = tl.minimum(first_row + R, seq.M)
    query, key = seq.q_first + first, seq.k_first + start
    last = tl.minimum(first + BLOCK_M, end_row) - 1
    begin, _, _, end = seen(
        first + seq.shift, last + seq.shift, x.behind, x.ahead, seq.present, BLOCK_N
    )
    p = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    visited = (start >= begin) & (start < end)
    if x.live is not None:
        here = place_of(x, b, h, block, start, BLOCK_N)
        after = place_of(x, b, h, block, start + BLOCK_N, BLOCK_N)
        visited = visited & (here < after)
    if visited:
        # (1) S = φ(scale·q·kᵀ) + …, −∞ where masked; in base 2
        product = products(
            x.q, x.q_strides, h, x.k, x.k_strides, h // x.G, seq.batch,
            query, m, seq.q_first + end_row, key, tl.trans(n), seq.k_first + seq.present,
            D, CHUNK_D, PRECISION,
        )  # (BLOCK_M, BLOCK_N)  # fmt: skip
        s = scores(product, x, b, seq, h, rows, columns, True, SCORE)
        # (2) P = exp(S − lse)
        p = weights_again(s, load_lse(lse_ptr, x, seq, h, rows, end_row))
    p_at = at(p_ptr, p_strides, b, h, block * BLOCK_M, m.to(tl.int64), columns)
    tl.store(p_at, p, mask=(rows < first_row + R) & (columns < x.longest_k))


@triton.jit
def received_kernel(
    x,  # Call
    lse_ptr,  # (B, H, M) float32
    received_ptr,  # (B, H, N) float32
    D: tl.constexpr,
    SCORE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Sum the weights of BLOCK_N keys over all queries; tiles are (keys, queries)."""
    blocks = tl.cdiv(x.longest_k, BLOCK_N)
    block, bh = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b, h = bh // x.H, bh % x.H
    kv_head = h // x.G
    first = block * BLOCK_N
    n, m = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_M)[None, :]
    columns = first + n
    seq = sequence(x, b)
    if x.k_starts is not None:
        if first >= seq.N:
            return
    key, q_end, k_end = seq.k_first + first, seq.q_first + seq.M, seq.k_first + seq.present
    if CHUNK_D == BLOCK_D:
        d = tl.arange(0, BLOCK_D)[None, :]
        k = load(x.k, x.k_strides, seq.batch, kv_head, key, n, d, k_end, D)
    total = tl.zeros([BLOCK_N, 1], tl.float32)
    # Key j is seen by queries j − shift − ahead … j − shift + behind. Padding keys need no mask (0
    # is stored for them), nor does the last tile of queries, where lse is +∞ and weights are 0.
    length = tl.where(first < seq.present, tl.cdiv(seq.M, BLOCK_M) * BLOCK_M, 0)
    last = tl.minimum(first + BLOCK_N, seq.present) - 1
    begin, full, stop, end = seen(
        first - seq.shift, last - seq.shift, x.ahead, x.behind, length, BLOCK_M
    )
    begin, full, stop, end = places(x, b, h, block, begin, full, stop, end, BLOCK_M)
    # EDGE 0: tiles whose queries all see every key of the block; 1: tiles that need the mask.
    for EDGE in tl.static_range(1 if x.behind is None and x.ahead is None else 2):
        for i in range(tiles_seen(begin, full, stop, end, x.ahead, EDGE, BLOCK_M)):
            start = tile_start(i, begin, full, stop, x.ahead, EDGE, BLOCK_M)
            start = tile_at(x, b, h, block, start, BLOCK_M)
            query, rows = seq.q_first + start, start + m
            # (1) S = φ(scale·q·kᵀ) + …, −∞ where masked; in base 2
            if CHUNK_D == BLOCK_D:
                q = load(x.q, x.q_strides, seq.batch, h, query, tl.trans(m), d, q_end, D)
                product = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
            else:
                product = products(
                    x.k, x.k_strides, kv_head, x.q, x.q_strides, h, seq.batch,
                    key, n, k_end, query, tl.trans(m), q_end, D, CHUNK_D, PRECISION,
                )  # (BLOCK_N, BLOCK_M)  # fmt: skip
            s = scores(product, x, b, seq, h, rows, columns, EDGE, SCORE)
            # (2) P = exp(S − lse)
            p = weights_again(s, load_lse(lse_ptr, x, seq, h, rows, seq.M))
            # (3) received = colsum P
            total += tl.sum(p, axis=1, keep_dims=True)
    total = tl.where(columns < seq.present, total, 0.0)
    column_at = (seq.batch * x.H + h).to(tl.int64) * x.N + seq.k_first + columns
    tl.store(received_ptr + column_at, total, mask=columns < seq.N)


def weights(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: torch.Tensor | None = None,
    block_size: BlockSize | None = None,
    rows: slice | None = None,
    allow_tf32: bool = False,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Return the weights with which queries attend to keys, (B, H, R, N) float32.

    Arguments and results are those of `reference.attention_weights.weights`, in float16, bfloat16
    or float32, any strides; `allow_tf32` and `tile` are those of `attention.forward`.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, None, mask,
        key_lengths, 0.0, 0, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        rotary, block_mask, block_size,
    )  # fmt: skip
    _check(q, k, lse, options)
    # (0) queries and keys at their positions
    q, k, options = at_positions(q, k, options)
    H, (B, M, N) = q.shape[1], sizes(options, q.shape[0], q.shape[2], k.shape[2])
    some = check_rows(rows, M)
    p = torch.empty((B, H, len(some), N), dtype=torch.float32, device=q.device)
    tile = tile or _tile(q, k)
    tiles = triton.cdiv(len(some), tile.block_m) * triton.cdiv(N, tile.block_n)
    x = call(q, k, None, options.scale(q.shape[-1]), options)
    weights_kernel[(tiles * B * H,)](
        attention_blocks.over_keys(x, tile, some), lse.float().contiguous(),
        p, p.stride(), some.start, len(some),
        **constants(q, options, allow_tf32, tile),
    )  # fmt: skip
    return p


def received(
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    key_lengths: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: torch.Tensor | None = None,
    block_size: BlockSize | None = None,
    allow_tf32: bool = False,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Return how much attention each key receives, (B, H, N) float32.

    Arguments are those of `weights`, except `rows`.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, None, mask,
        key_lengths, 0.0, 0, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        rotary, block_mask, block_size,
    )  # fmt: skip
    _check(q, k, lse, options)
    # (0) queries and keys at their positions
    q, k, options = at_positions(q, k, options)
    H, (B, _, N) = q.shape[1], sizes(options, q.shape[0], q.shape[2], k.shape[2])
    out = torch.empty((q.shape[0], H, k.shape[2]), dtype=torch.float32, device=q.device)
    tile = tile or _tile(q, k)
    x = call(q, k, None, options.scale(q.shape[-1]), options)
    received_kernel[(triton.cdiv(N, tile.block_n) * B * H,)](
        attention_blocks.over_queries(x, tile), lse.float().contiguous(), out,
        BLOCK_D=padded(q.shape[-1]), **constants(q, options, allow_tf32, tile),
    )  # fmt: skip
    return out


def _tile(q: torch.Tensor, k: torch.Tensor) -> Tile:
    """Return the table's tile for these queries and keys."""
    straight = aligned(*q.stride(), *k.stride())
    return choose_tile(q.shape[-1], q.element_size(), aligned=straight)


def _check(q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, options: Options) -> None:
    """Refuse what the reference refuses, and dtypes that the kernels do not take."""
    check(q, k, lse, options)
    supported("q", q)
