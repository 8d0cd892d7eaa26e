"""Decoding with a cache in two launches: parts of every sequence's keys in parallel, then merged.

A few sequences with one query each have too few heads to keep a GPU busy, and a long cache to read.
So the keys are split (Flash-Decoding: Dao, Haziza, Massa & Sizov 2023): a program takes one KV head
and `split` keys of one sequence, runs `attention`'s forward kernel on them, and leaves a partial
output and log-sum-exp in float32. A second kernel merges a sequence's parts, as `merge_attention`
does.

All G·M rows, the queries of the heads that share keys, go through one program, together or block by
block: keys are read once from memory. Rows are numbered query by query, r = m·G + g. Queries are
rotated to their positions as they are read; keys were rotated when they entered the cache. Tiles
without a live block are not visited: this is looked up for each tile before its keys are read.

A sequence's result depends on nothing but that sequence: a part is a fixed number of keys, whatever
the batch, the capacity or the device; parts are merged in their order; there are no atomics. A
sequence has the same bits alone as among others, in pages as in one piece, and its queries packed
as in a batch of its own; only, `max_seqlen_q`, like the number of queries, chooses the tile and
whether there are parts. The lengths stay on the device: the grid covers the cache's capacity and
the largest number of queries, and programs past a sequence's end return at once.

Bytes: the keys and values present, once. Every part's G·M·D partial outputs are written and read
again in float32: beside 16-bit keys, 2·G·M/split as much, 6 % for 16 rows. Operations: 4·G·M·D per
key. Memory: S·B·H·M·(D + 1) float32, S the number of parts in the capacity.

`B` batch, `H` heads, `K` KV heads, `G` = H/K, `M` queries, `N` keys that a sequence
has room for, `P` pages, `S` parts, `D` head_dim. Steps (0)–(4) are those of attention. Where
queries are packed, q, out and lse and the parts of both are of one batch of all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import dropout, merge_attention
from twofold.kernels.attention import draws
from twofold.kernels.attention_decode_tiles import Tile, choose_split, choose_tile
from twofold.kernels.attention_parts import (
    LOG2_E,
    Sequence,
    call,
    keys_present,
    load,
    log_sum,
    masked,
    scores,
    seen,
    turned,
    weigh,
)
from twofold.kernels.attention_tiles import padded
from twofold.kernels.layout import side_by_side
from twofold.kernels.precision import float32_products, supported
from twofold.reference import checks
from twofold.reference.attention_decode import Queries, capacity, check
from twofold.reference.attention_scores import BlockSize, Options, ScoreMod, Window
from twofold.reference.rotary import Rotary

MOST_KEYS = 2**30  # capacity of a sequence: keys are counted in 32 bits


class Pages(NamedTuple):
    """Where a sequence's keys are: contiguous if there is no table."""

    table: Any = None  # (B, pages)
    sequence_stride: int = 0  # Triton 3.6 would lose a tuple of both on the way into a loop
    page_stride: int = 0
    size: int = 0
    number: int = 0


@triton.jit
def place(program, blocks, S, K):
    """Return (block of rows, part, kv_head, b): programs that share keys have adjacent numbers."""
    rest = program // blocks
    return program % blocks, rest % S, rest // S % K, rest // S // K


@triton.jit
def find(pages, b, start, n, end):
    """Return where keys start + n of sequence b are, up to `end`, as the arguments of `load`.

    These are (b, start, rows, length) of `load`: the page, where its rows count from, the rows, and
    how many the page has. In a page outside the cache all rows are past its end.
    """
    if pages.table is not None:
        key = start + n
        page_at = b.to(tl.int64) * pages.sequence_stride
        page_at += (key // pages.size).to(tl.int64) * pages.page_stride
        page = tl.load(pages.table + page_at, mask=key < end, other=0)
        inside = (key < end) & (page >= 0) & (page < pages.number)
        row = tl.where(inside, key % pages.size, pages.size)
        return page, 0, row.to(tl.int64), pages.size
    else:
        return b, start, n, end


@triton.jit
def queries_of(starts, b, M):
    """Return where the queries of sequence b begin in its batch of q, and how many it has."""
    first = 0
    if starts is not None:
        first = tl.load(starts + b)
        M = tl.load(starts + b + 1) - first
    return first, M


@triton.jit
def load_queries(x, keys, heads, rows, columns, D: tl.constexpr):
    """Load rows, (0) rotated by the angles of their positions, except those before the first key.

    Where nothing is rotated, `turned` returns what was loaded.
    """
    b, first, rows = keys.batch, keys.q_first, rows.to(tl.int64)
    q = load(x.q, x.q_strides, b, heads, first, rows, columns, first + keys.M, D)
    if x.q_turn is not None:
        there = (rows < keys.M) & (keys.shift + rows >= 0)
        q = turned(q, x.q, x.q_strides, b, heads, first, rows, columns, there, x.q_turn, keys.shift)
    return q


@triton.jit
def has_live_block(x, b, heads, rows, columns, keys):
    """Return whether any pair of a tile is in a live block."""
    inside = (rows < keys.M) & (columns < keys.present)
    i, j = rows // x.block_m, columns // x.block_n
    s = tl.zeros([rows.shape[0], columns.shape[1]], tl.float32)
    return tl.max(masked(s, x.block_mask, x.block_strides, b, heads, i, j, inside)) == 0.0


@triton.jit
def attend(
    x, pages, keys, b, kv_head, heads, rows, start, q, top, total, acc, threshold,
    D: tl.constexpr, DROPOUT: tl.constexpr, SCORE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Attend from rows to the tile of keys at `start`; return maximum, sum and output so far.

    `rows` and `heads` are (BLOCK_R, 1); q is None if its features are taken in chunks.
    """
    n, d = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, BLOCK_D)[None, :]
    page, page_start, i, length = find(pages, b, start, n, keys.present)
    # (1) S = φ(scale·q·kᵀ) + …, −∞ where masked; in base 2
    if q is not None:
        k = load(x.k, x.k_strides, page, kv_head, page_start, i, d, length, D)
        product = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_R, BLOCK_N)
    else:
        product = tl.zeros([rows.shape[0], BLOCK_N], tl.float32)
        for chunk in range(0, BLOCK_D, CHUNK_D):
            c = chunk + tl.arange(0, CHUNK_D)[None, :]
            part = load_queries(x, keys, heads, rows, c, D)
            k = load(x.k, x.k_strides, page, kv_head, page_start, i, c, length, D)
            product = tl.dot(part, tl.trans(k), product, input_precision=PRECISION)
    columns = start + tl.trans(n)
    positions = keys.shift + rows
    s = scores(product, x, b, keys, heads, rows, columns, True, SCORE, positions)
    if pages.table is not None:
        known = tl.trans((page >= 0) & (page < pages.number))
        s = tl.where(known | (s == -float("inf")), s, float("nan"))
    # (2) P̃ = exp(S − m), m the maximum so far; (3) ℓ = rowsum P̃, so far
    p, rescale, top, total = weigh(s, top, total)
    # (4) out = (P∘X)·v, so far, still without ÷ ℓ and X's 1/(1 − p)
    if DROPOUT:
        keep = dropout.attention_keep(x, tl.load(x.seed), b, heads, rows, start, threshold, BLOCK_N)
        p = tl.where(keep, p, 0.0)
    v = load(x.v, x.v_strides, page, kv_head, page_start, i, d, length, D)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
    return top, total, acc


@triton.jit(do_not_specialize=["threshold"])
def split_kernel(
    x,  # Call, whose N is the room for a sequence's keys
    pages,  # Pages
    outs_ptr,  # (S, B, H, M, D) float32
    lses_ptr,  # (S, B, H, M) float32
    B, S,  # batches of q, and parts
    split,  # keys in a part
    threshold: tl.int32,
    dropout_scale: tl.float32,
    D: tl.constexpr,
    DROPOUT: tl.constexpr,
    SCORE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK_D: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_R rows of one head of keys to one part of one sequence's."""
    blocks = tl.cdiv(x.G * x.longest_q, BLOCK_R)
    block, part, kv_head, b = place(tl.program_id(0), blocks, S, x.H // x.G)
    q_first, M = queries_of(x.q_starts, b, x.M)
    rows_in_all = x.G * M
    first = block * BLOCK_R
    if x.q_starts is not None:
        if first >= rows_in_all:
            return
    present = keys_present(x.lengths, b, x.N)
    begin = part * split
    if (begin >= present) & (part > 0):  # the first part always runs: it has the sinks
        return
    d = tl.arange(0, BLOCK_D)[None, :]
    r = first + tl.arange(0, BLOCK_R)
    m, h = r // x.G, kv_head * x.G + r % x.G
    rows, heads = m[:, None], h[:, None]
    shift = present - M
    stop = tl.minimum(begin + split, present)
    last = tl.minimum(first + BLOCK_R, rows_in_all) - 1
    seen_from, _, _, end = seen(
        shift + first // x.G, shift + last // x.G, x.behind, x.ahead, stop, BLOCK_N
    )
    keys = Sequence(b, q_first, 0, M, x.N, end, shift)
    q = None
    if CHUNK_D == BLOCK_D:
        q = load_queries(x, keys, heads, rows, d, D)  # (BLOCK_R, BLOCK_D)
    top = tl.full([BLOCK_R], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    if x.sinks is not None:
        sink = tl.load(x.sinks + h).to(tl.float32) * LOG2_E
        top = tl.where(part == 0, sink, top)
        total = tl.where(part == 0, 1.0, total)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(tl.maximum(begin, seen_from), end, BLOCK_N):
        if x.block_mask is None:
            top, total, acc = attend(
                x, pages, keys, b, kv_head, heads, rows, start, q, top, total, acc,
                threshold, D, DROPOUT, SCORE, PRECISION, BLOCK_N, BLOCK_D, CHUNK_D,
            )  # fmt: skip
        else:
            columns = start + tl.arange(0, BLOCK_N)[None, :]
            if has_live_block(x, b, heads, rows, columns, keys):
                top, total, acc = attend(
                    x, pages, keys, b, kv_head, heads, rows, start, q, top, total, acc,
                    threshold, D, DROPOUT, SCORE, PRECISION, BLOCK_N, BLOCK_D, CHUNK_D,
                )  # fmt: skip
    # (3) lse = m + log ℓ; (4) out ÷ ℓ, and X's 1/(1 − p), a constant factored out of the sum
    divisor, lse = log_sum(top, total)
    batch = b
    if x.q_starts is not None:
        batch = 0
    row_at = ((part.to(tl.int64) * B + batch) * x.H + h) * x.M + q_first + m
    tl.store(lses_ptr + row_at, lse, mask=m < M)
    # A row that attended to nothing is left out of the merge, and need not be written.
    written = ((m < M) & (lse > -float("inf")))[:, None] & (d < D)
    out = acc * (dropout_scale / divisor)[:, None]
    tl.store(outs_ptr + row_at[:, None] * D + d, out, mask=written)


@triton.jit
def merge_kernel(
    lengths_ptr,  # (B,)
    starts_ptr,  # (B + 1,) int32, or None
    outs_ptr,  # (S, B, H, M, D) float32
    lses_ptr,  # (S, B, H, M) float32
    out_ptr,  # (B, H, M, D)
    lse_ptr,  # (B, H, M) float32
    outs_part, lses_part,  # from one part to the next
    outs_strides, lses_strides, out_strides,  # of (B, H, M) and D
    split, N, H, M, longest, D,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merge the parts of BLOCK_R rows of one sequence, as many as it has keys for."""
    b, h, m, rows = merge_attention.place(tl.program_id(0), H, longest, BLOCK_R)
    parts = tl.maximum(tl.cdiv(keys_present(lengths_ptr, b, N), split), 1)
    if starts_ptr is not None:
        # Rows count the sequence's own queries, which are some of all the queries of a head.
        first, own = queries_of(starts_ptr, b, M)
        h, m = rows // tl.maximum(own, 1), first + rows % tl.maximum(own, 1)
        rows = tl.where(rows < H * own, h * M + m, H * M)
        b = b * 0
    merge_attention.forward_rows(
        outs_ptr, lses_ptr, out_ptr, lse_ptr,
        outs_part, lses_part, outs_strides, lses_strides, out_strides,
        b, h, m, rows, parts, H, M, D, BLOCK_R, BLOCK_S, BLOCK_D,
    )  # fmt: skip


def forward(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    key_lengths: torch.Tensor,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    block_mask: torch.Tensor | None = None,
    block_size: BlockSize | None = None,
    rotary: Rotary | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    dropout_p: float = 0.0,
    seed: int | torch.Tensor = 0,
    allow_tf32: bool = False,
    split: int | None = None,
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for every query, the weighted sum of the values of its sequence's keys.

    Arguments and results are those of `reference.attention_decode.forward`, in float16, bfloat16 or
    float32, any strides; lse is float32. The function of `score_mod` is a `@triton.jit` function,
    called on whole tiles, even past the lengths. float32 products are accurate to float32 (three
    tf32 products) unless `allow_tf32`. `split` is how many keys make a part, rounded up to a
    multiple of 8 with dropout; the bits of the results depend on it. If it is None and queries are
    many, there is one part. `tile` overrides the table's choice. A page outside the cache gives NaN
    to the queries that attend to one of its keys.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, sinks, mask,
        key_lengths, dropout_p, seed, rotary=rotary, block_mask=block_mask, block_size=block_size,
    )  # fmt: skip
    queries = Queries(cu_seqlens_q, max_seqlen_q)
    check(q, k_cache, v_cache, block_table, options, queries)
    supported("q", q)
    if split is not None:
        checks.count("split", split, 1)
    (B, H, M, D), K, N = q.shape, k_cache.shape[1], capacity(k_cache, block_table)
    room = "k_cache.shape[2]" if block_table is None else "block_table.shape[1] · k_cache.shape[2]"
    checks.require(N <= MOST_KEYS, room, N, f"at most {MOST_KEYS}")
    sequences, longest = queries.sizes(q)
    if queries.starts is not None:
        options = options._replace(
            cu_seqlens_q=queries.starts, max_seqlen_q=longest, max_seqlen_k=N
        )
    split = split or choose_split(H // K * longest, N)
    if dropout_p > 0.0:  # eight neighbours are drawn together, in one part
        split = triton.cdiv(split, 8) * 8
    split = min(split, N)
    S = triton.cdiv(N, split)
    out = side_by_side((B, H, M, D), q.dtype, q.device)
    lse, lses = (
        torch.empty(shape, dtype=torch.float32, device=q.device)
        for shape in ((B, H, M), (S, B, H, M))
    )
    outs = torch.empty((S, B, H, M, D), dtype=torch.float32, device=q.device)
    masks = (bias, mask, block_mask, rotary)
    crowded = any(x is not None for x in masks) or dropout_p > 0.0
    tile = tile or choose_tile(H // K * longest, D, q.element_size(), masked=crowded)
    pages = Pages()
    if block_table is not None:
        strides = block_table.stride(0), block_table.stride(1)
        pages = Pages(block_table, *strides, k_cache.shape[2], len(k_cache))
    x = call(q, k_cache, v_cache, options.scale(D), options, N)
    if queries.starts is not None:
        x = x._replace(q_strides=(0, *x.q_strides[1:]))  # all sequences are in one batch
    split_kernel[(triton.cdiv(H // K * longest, tile.block_r) * S * K * sequences,)](
        x, pages, outs, lses, B, S, split,
        **draws(options),
        D=D,
        SCORE=None if score_mod is None else score_mod.function,
        PRECISION=float32_products(allow_tf32),
        BLOCK_R=tile.block_r,
        BLOCK_N=tile.block_n,
        BLOCK_D=padded(D),
        CHUNK_D=tile.chunk_d or padded(D),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    merging = merge_attention.choose_tile(D)
    merge_kernel[(triton.cdiv(H * longest, merging.block_r) * sequences,)](
        x.lengths, x.q_starts, outs, lses, out, lse,
        outs.stride(0), lses.stride(0), outs.stride()[1:], lses.stride()[1:], out.stride(),
        split, N, H, M, longest, D,
        **merge_attention.constants(D, merging),
    )  # fmt: skip
    return out, lse
