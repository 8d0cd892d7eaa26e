r"""Attention of one or a few new queries per sequence over a cache of keys and values.

    out = softmax(q·kᵀ·scale)·v,   lse_i = log Σ_j exp(s_ij)

over each sequence's own keys, however many it has: the attention of token-by-token generation
(Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"). A cache may be divided
into pages of equally many keys, stored anywhere; a table lists each sequence's pages (Kwon et al.
2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention").

The M queries are the sequence's last M positions: query i is at position length − M + i. `causal`,
`window_size` and `alibi_slopes` count from this position, a `score_mod` gets it as the query's
index, and a rotary query is rotated by its angles; the keys in the cache are already rotated. In
`attention`, by contrast, `key_lengths` only marks padding, and all sequences have the diagonal of N
keys. For a sequence that fills its cache both mean the same.

Sequences may each have their own number of queries, packed one after the other: a prompt beside
single tokens, as in serving. What is said of M queries then holds for each sequence's own number.

`B` batch, `H` heads, `K` KV heads, `M` queries, `N` keys that a sequence has room
for, `P` pages, `D` head_dim. Steps (0) to (4) are those of `attention`, which is called for each
sequence; the kernel applies them to parts of the keys and merges the parts by the steps of
`merge_attention`. There is no backward.

A query that may attend to no key has output 0 and lse −∞ (its sink if there are sinks).

Dropout drops what `attention` would drop for the same queries and keys: its rows are the indices of
the queries, not their positions. So each step of generation needs a seed of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import attention, attention_scores, checks, dropout
from twofold.reference.attention_scores import BlockSize, Options, ScoreMod, Window, blocks
from twofold.reference.precision import rounded, widened
from twofold.reference.rotary import Rotary, check_angles, check_is_rotary, turn

Array = np.ndarray[Any, np.dtype[Any]]

ALIGNMENTS = ("bottom-right",)


class Queries(NamedTuple):
    """Where the queries of packed sequences begin, and the most queries that a sequence may have.

    Both are None if sequences are not packed.
    """

    starts: Any = None  # (B + 1,)
    longest: int | None = None

    def sizes(self, q: Any) -> tuple[int, int]:
        """Return B and M: the number of sequences, and the most queries that one may have."""
        if self.longest is None:
            return int(q.shape[0]), int(q.shape[2])
        return int(self.starts.shape[0]) - 1, int(self.longest)

    def rows(self, b: int, M: int) -> tuple[int, slice]:
        """Return the batch of q that holds sequence b, and its rows there, all M if not packed."""
        if self.starts is None:
            return b, slice(0, M)
        return 0, slice(int(self.starts[b]), int(self.starts[b + 1]))


def check(
    q: Any, k_cache: Any, v_cache: Any, block_table: Any, options: Options, queries: Queries
) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(q=q, k_cache=k_cache, v_cache=v_cache, bias=options.bias)
    checks.shape("q", q, ("B", "H", "M", "D"))
    check_packing(q, queries)
    (B, M), (H, D) = queries.sizes(q), (int(q.shape[1]), int(q.shape[3]))
    checks.head_dim("q", D)
    if block_table is None:
        checks.shape("k_cache", k_cache, (B, "K", "N", D))
    else:
        checks.shape("k_cache", k_cache, ("P", "K", "page_size", D))
        checks.integer(block_table=block_table)
        checks.shape("block_table", block_table, (B, "pages"))
    K = int(k_cache.shape[1])
    checks.require(H % K == 0, "k_cache.shape[1]", K, f"a divisor of q.shape[1], {H}")
    checks.shape("v_cache", v_cache, tuple(int(n) for n in k_cache.shape))
    checks.array("key_lengths", options.key_lengths)
    attention_scores.check_causal(options.causal, ALIGNMENTS)
    attention_scores.check(options, B, H, M, capacity(k_cache, block_table))
    checks.seed(options.seed, q)
    check_positions(options.rotary, q, B, capacity(k_cache, block_table))
    checks.same_device(
        q=q, cu_seqlens_q=queries.starts, key_lengths=options.key_lengths,
        block_table=block_table, sinks=options.sinks, alibi_slopes=options.alibi_slopes,
        mask=options.mask, block_mask=options.block_mask,
    )  # fmt: skip


def check_packing(q: Any, queries: Queries) -> None:
    """Refuse arguments that do not delimit the queries of every sequence."""
    starts, longest = queries
    if starts is None:
        checks.require(longest is None, "max_seqlen_q", longest, "None without cu_seqlens_q")
    else:
        checks.require(int(q.shape[0]) == 1, "q.shape[0]", q.shape[0], "1 with cu_seqlens_q")
        checks.offsets("cu_seqlens_q", starts, int(q.shape[2]), "max_seqlen_q", longest)


def check_positions(rotary: Any, q: Any, B: int, room: int) -> None:
    """Refuse angles that do not cover all positions of the capacity."""
    if rotary is None:
        return
    check_is_rotary(rotary)
    for name, angles in (("k_cos", rotary.k_cos), ("k_sin", rotary.k_sin)):
        checks.require(angles is None, f"rotary.{name}", "given", "None: keys are turned already")
    cos, sin, D = rotary.cos, rotary.sin, int(q.shape[3])
    check_angles("rotary.", q, cos, sin)
    checks.same_device(**{"q": q, "rotary.cos": cos})
    batches = () if len(cos.shape) == 2 else (B,)
    checks.shape("rotary.cos", cos, (*batches, "L", "F"))
    checks.shape("rotary.sin", sin, tuple(int(n) for n in cos.shape))
    L, F = (int(n) for n in cos.shape[-2:])
    must = f"at least the room for a sequence's keys, {room}"
    checks.require(L >= room, "rotary.cos.shape[-2]", L, must)
    checks.require(2 * F <= D, "rotary.cos.shape[-1]", F, f"at most half of head_dim {D}")


def capacity(k_cache: Any, block_table: Any) -> int:
    """Return how many keys a sequence has room for."""
    pages = 1 if block_table is None else int(block_table.shape[1])
    return pages * int(k_cache.shape[2])


def forward(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    *,
    key_lengths: Array,
    block_table: Array | None = None,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: Array | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
    mask: Array | None = None,
    block_mask: Array | None = None,
    block_size: BlockSize | None = None,
    rotary: Rotary | None = None,
    cu_seqlens_q: Array | None = None,
    max_seqlen_q: int | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Return, for every query, the weighted sum of the values of its sequence's keys.

    Args:
        q: (B, H, M, D), floating, D ≤ 512: the new queries, whose keys are in the cache already.
        k_cache, v_cache: (B, K, N, D), or pages (P, K, page_size, D) with a `block_table`, of q's
            dtype; K divides H, and G = H/K consecutive heads of q share a head of k and v.
        key_lengths: (B,), int32 or int64: how many keys each sequence has; a length below 0 counts
            as 0, one above the capacity as the capacity. The cache beyond them is never read.
        block_table: (B, pages), int32 or int64: keys p·page_size … of sequence b are in page
            block_table[b, p], at least 0 and below P. Entries after a sequence's last key, and
            those of a sequence without queries, may be anything.
        softmax_scale: multiplies the products of queries and keys; 1/√D by default.
        causal: query i attends to keys j ≤ length − M + i (True or "bottom-right").
        window_size: (left, right): at most this many keys before and after key length − M + i,
            None for any number. `causal` leaves none after it.
        softcap: s becomes softcap·tanh(s/softcap).
        score_mod: a function of the scores; its derivative is not called.
        alibi_slopes: broadcastable to (B, H), floating: s loses slope·|length − M + i − j|.
        bias: added to the scores, of q's dtype, broadcastable to (B, H, M, N).
        sinks: (H,), floating: the score of a key without a value, for every query of a head.
        mask: bool, broadcastable to (B, H, M, N); True where a query may attend.
        block_mask, block_size: as for `attention.forward`, over the N keys of the capacity.
        rotary: rotates every query by the angles of its position, a row of cos and sin, (L, F) or
            (B, L, F), L ≥ N; a query before the first key is not rotated. Keys are not rotated,
            as those in the cache already are: `k_cos` and `k_sin` must be None.
        cu_seqlens_q: (B + 1,), int32: q (1, H, T, D) holds the queries of B sequences one after the
            other; those of sequence b, possibly none, are rows cu_seqlens_q[b] …
            cu_seqlens_q[b + 1] − 1. The offsets start at 0, never decrease, and end at T. In all
            other arguments the batch axis counts sequences, and M is max_seqlen_q: `mask` and
            `bias` broadcast to (B, H, max_seqlen_q, N), each sequence's queries counted from 0.
        max_seqlen_q: no sequence has more queries. On a GPU neither this nor the values of
            cu_seqlens_q are checked: that would mean waiting for it.
        dropout_p: probability of dropping a weight, after the softmax; lse includes all weights.
        seed: determines the dropout mask; a weight's place in it is given by its sequence, its
            head, its query i and its key, as in `attention.forward`.

    Returns:
        out (B, H, M, D), of q's dtype, and lse (B, H, M), the natural-log log-sum-exp, in float32
        (float64 for float64 inputs); packed as q is.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
        IndexError: a page outside the cache, naming its place. (The kernel, which cannot look at
            values without waiting for the GPU, gives NaN where it would be read.)
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, sinks, mask,
        key_lengths, dropout_p, seed, rotary=rotary, block_mask=block_mask, block_size=block_size,
    )  # fmt: skip
    queries = Queries(cu_seqlens_q, max_seqlen_q)
    check(q, k_cache, v_cache, block_table, options, queries)
    (B, longest), H, N = queries.sizes(q), q.shape[1], capacity(k_cache, block_table)
    lengths = np.clip(key_lengths, 0, N)
    if cu_seqlens_q is not None:
        lengths = np.where(np.diff(cu_seqlens_q) > 0, lengths, 0)
    if block_table is not None:
        used = np.arange(block_table.shape[1]) * k_cache.shape[2] < lengths[:, None]  # (B, pages)
        checks.in_range("block_table", np.where(used, block_table, 0), len(k_cache))
    dtype, (q, k_cache, v_cache) = q.dtype, (widened(x) for x in (q, k_cache, v_cache))
    bias = None if bias is None else widened(bias)
    out, lse = np.zeros_like(q), np.full(q.shape[:3], -np.inf, q.dtype)
    if sinks is not None:
        lse[...] = sinks[:, None]
    for b, length in enumerate(lengths):
        if length == 0:
            continue
        batch, rows = queries.rows(b, longest)
        M = rows.stop - rows.start
        slopes = None if alibi_slopes is None else np.broadcast_to(alibi_slopes, (B, H))[b]
        live = block_mask
        if block_mask is not None:
            live = np.broadcast_to(block_mask, (B, H, *blocks(options, longest, N)))[b]
            of_rows, of_keys = blocks(options, M, length)
            live = live[..., :of_rows, :of_keys]
        own = q[batch, :, rows][None]  # (1, H, M, D)
        out[batch, :, rows], cache = attention.forward(
            # (0) queries at their positions
            own if rotary is None else turned(own, rotary, b, length - M),
            *(keys(x, b, length, block_table) for x in (k_cache, v_cache)),
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
            score_mod=None if score_mod is None else placed(score_mod, b, length - M),
            alibi_slopes=slopes,
            bias=pairs(bias, (B, H, longest, N), b, M, length),
            sinks=sinks,
            mask=pairs(mask, (B, H, longest, N), b, M, length),
            block_mask=live,
            block_size=block_size,
        )
        lse[batch, :, rows] = cache.lse[0]
        if dropout_p > 0.0:
            # (4) out = (P∘X)·v
            scaled_mask = dropout.attention_scaled_mask(
                cache.p.shape, dropout_p, seed, cache.p.dtype, b
            )
            kept = attention.fold_groups(cache.p * scaled_mask, cache.k)
            out[batch, :, rows] = attention.unfold_groups(kept @ cache.v, cache.q)[0]
    return rounded(out, dtype), lse


def pairs(
    x: Array | None, shape: tuple[int, int, int, int], b: int, M: int, length: int
) -> Array | None:
    """Return one sequence's part of a bias or mask that broadcasts to this shape."""
    return None if x is None else np.broadcast_to(x, shape)[b, :, :M, :length]


def keys(cache: Array, b: int, length: int, block_table: Array | None) -> Array:
    """Return a sequence's keys or values, (1, K, length, D)."""
    if block_table is None:
        return cache[b : b + 1, :, :length]
    pages = block_table[b, : -(-length // cache.shape[2])]
    found = np.concatenate([cache[page] for page in pages], axis=1)  # (K, pages·page_size, D)
    return found[None, :, :length]


def turned(q: Array, rotary: Rotary, b: int, shift: int) -> Array:
    """Return the queries of one sequence (1, H, M, D), rotated, at positions from `shift` on."""
    position = shift + np.arange(q.shape[2])
    cos, sin = (
        (x if x.ndim == 2 else x[b])[np.maximum(position, 0)] for x in (rotary.cos, rotary.sin)
    )  # (M, F)
    there = position[:, None] >= 0
    return turn(q, np.where(there, cos, 1), np.where(there, sin, 0), rotary.interleaved)


def placed(mod: ScoreMod, b: int, shift: int) -> ScoreMod:
    """Return a function of the scores for a call with sequence b alone, which counts from 0."""

    def function(s: Array, one: Array, h: Array, i: Array, j: Array, args: tuple[Any, ...]) -> Any:
        return mod.function(s, one + b, h, i + shift, j, args)

    return ScoreMod(function, lambda s, *_: s, mod.args)
