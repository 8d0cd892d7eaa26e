r"""Attention weights for inspection, and how much attention each key receives.

    p_ij = exp(s_ij − lse_i),   received_j = Σ_i p_ij

Given lse, which `attention.forward` saves, a weight depends on its own query and key alone: the
weights of one query can be computed without those of the others. The backward of FlashAttention
recomputes the softmax from its log-sum-exp in the same way (Dao et al. 2022, appendix B.2); "heavy
hitters" are chosen by the column sums of the weights (Zhang et al. 2023, "H2O: Heavy-Hitter Oracle
for Efficient Generative Inference of Large Language Models").

The weights are those before dropout. Sinks enter through lse: the weights of a row sum to 1 minus
the sink's share.

`B` batch, `H` heads, `K` KV heads, `G` = H/K, `M` queries, `R` of them inspected, `N` keys,
`D` head_dim. The steps are numbered; the kernel carries the same numbers where it does the same
thing.

A query that may attend to no key has lse −∞ and weights 0. The weights of packed sequences are
unpacked, one batch element each, 0 where a sequence has no such query or key; what keys receive is
packed as the keys are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.reference import attention, attention_scores, checks
from twofold.reference.attention_scores import (
    BlockSize,
    Options,
    ScoreMod,
    Window,
    pack,
    unpack,
)
from twofold.reference.precision import rounded, widened
from twofold.reference.rotary import Rotary, turn

Array = np.ndarray[Any, np.dtype[Any]]


def check(q: Any, k: Any, lse: Any, options: Options) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    attention.check(q, k, k, options)  # k stands in for the values, which are not needed
    checks.floating(lse=lse)
    checks.shape("lse", lse, tuple(int(n) for n in q.shape[:3]))
    checks.same_device(q=q, lse=lse)


def check_rows(rows: Any, M: int) -> range:
    """Return the indices of the queries that a slice takes; refuse all but consecutive ones."""
    if rows is None:
        return range(M)
    if not isinstance(rows, slice):
        raise TypeError(f"rows is a {type(rows).__name__}; it must be a slice or None")
    whole = all(n is None or checks.whole(n) for n in (rows.start, rows.stop, rows.step))
    found = range(M)[rows] if whole and rows.step != 0 else range(0)
    must = f"of ints and step 1, and take at least one of {M} queries"
    checks.require(found.step == 1 and len(found) > 0, "rows", rows, must)
    return found


def weights(
    q: Array,
    k: Array,
    lse: Array,
    *,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: Array | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: Array | None = None,
    block_size: BlockSize | None = None,
    rows: slice | None = None,
) -> Array:
    """Return the weights with which queries attend to keys.

    Args:
        q: (B, H, M, D), floating, D ≤ 512.
        k: (B, K, N, D); K divides H, and G = H/K consecutive heads of q share a head of k.
        lse: (B, H, M), floating, natural logarithms: the log-sum-exp of the same call of attention.
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, mask,
            key_lengths, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, rotary, block_mask,
            block_size: as they were given to `attention.forward`.
        rows: the queries of interest, all by default; `slice(-1, None)` is the last one. With
            packed sequences it slices max_seqlen_q queries of each. Memory and time grow with
            their number; all other arguments are those of the whole call.

    Returns:
        (B, H, R, N), for S packed sequences (S, H, R, max_seqlen_k), of the dtype to which NumPy
        promotes q's and lse's.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, None, mask,
        key_lengths, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, rotary=rotary,
        block_mask=block_mask, block_size=block_size,
    )  # fmt: skip
    check(q, k, lse, options)
    dtype = np.result_type(q, lse)
    q, k, lse = (widened(x) for x in (q, k, lse))
    # (0) queries and keys at their positions
    if rotary is not None:
        q, k = turn(q, *rotary.of_q), turn(k, *rotary.of_k)
    q, lse = (unpack(x, cu_seqlens_q, max_seqlen_q) for x in (q, lse))
    k, M = unpack(k, cu_seqlens_k, max_seqlen_k), q.shape[2]
    some = check_rows(rows, M)
    q, lse = (x[:, :, some.start : some.stop] for x in (q, lse))
    options = options._replace(bias=taken(bias, some), mask=taken(mask, some))
    scale = options.scale(q.shape[-1])
    # (1) S = φ(scale·q·kᵀ) + …, −∞ where masked
    folded = attention.fold_groups(q * q.dtype.type(scale), k)  # (B, K, G·R, D)
    s = attention.unfold_groups(folded @ k.mT, q)  # (B, H, R, N)
    s, _ = attention_scores.scores(s, options, some.start, M)
    live = attention_scores.attended(s.shape, options, some.start, M)
    if live is not None:
        s = np.where(live, s, -np.inf)
    # (2) P = exp(S − lse); +∞ stands in for −∞, so that a query without keys weighs nothing
    p: Array = np.exp(s - np.where(lse == -np.inf, np.inf, lse)[..., None])
    return rounded(p, dtype)


def received(
    q: Array,
    k: Array,
    lse: Array,
    *,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: Array | None = None,
    bias: Array | None = None,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: Array | None = None,
    block_size: BlockSize | None = None,
) -> Array:
    """Return how much attention each key receives: the sum of its weights over all queries.

    Arguments are those of `weights`, except `rows`.

    Returns:
        the sums, (B, H, N), of the dtype of the weights; N is the length of k, packed or not.
    """
    p = weights(
        q, k, lse, softmax_scale=softmax_scale, causal=causal, window_size=window_size,
        softcap=softcap, score_mod=score_mod, alibi_slopes=alibi_slopes, bias=bias, mask=mask,
        key_lengths=key_lengths, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, rotary=rotary, block_mask=block_mask,
        block_size=block_size,
    )  # (B, H, M, N)  # fmt: skip
    # (3) received = colsum P
    return pack(rounded(widened(p).sum(axis=-2), p.dtype), cu_seqlens_k)


def taken(x: Array | None, rows: range) -> Array | None:
    """Return the rows of a bias or mask, which may be broadcast along them."""
    if x is None or x.ndim < 2 or x.shape[-2] == 1:
        return x
    return x[..., rows.start : rows.stop, :]
