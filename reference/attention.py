r"""Scaled dot-product attention.

    out = softmax(q·kᵀ·scale)·v,   lse_i = log(Σ_j exp(s_ij) + exp(sink)), exp(sink) only with sinks

Vaswani et al. 2017, "Attention Is All You Need", equation (1); the backward as in Dao et al. 2022,
"FlashAttention", appendix B.2, with the gradient of lse added. The paper's m, ℓ and D are `top`,
`total` and `delta` here.

What else enters the scores, and which pairs take part, is in `attention_scores`. A sink is a key
without a value, which takes its share of the weights away (the Zero Sink of Xiao et al. 2023,
"Efficient Streaming Language Models with Attention Sinks", whose score is 0); its score is learned
for each head, as in OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card".

`B` batch, `H` heads, `K` KV heads, `G` = H/K, `M` queries, `N` keys, `D` head_dim.
The steps are numbered; the kernel carries the same numbers where it does the same thing.

A query that may attend to no key has output 0, lse −∞ (its sink if there are sinks) and gradient 0.

Packed sequences (varlen), which follow one another in a single batch, are unpacked here into one
batch element each, and packed again; the kernel reads them in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import attention_scores, checks, dropout
from twofold.reference.attention_scores import BlockSize, Options, ScoreMod, Window, pack, unpack
from twofold.reference.precision import rounded, widened
from twofold.reference.rotary import Rotary, check_rotary, turn, turn_back

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """What `backward` needs; `lse` and the weights `p` are also there for inspection.

    With rotary positions, q and k are the rotated ones. With packed sequences, `out` and `lse` are
    packed; all else is unpacked, a batch element for each sequence. For float16 inputs, all but
    `out` is float32. Without dropout, `scaled_mask` is None.
    """

    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array  # (B, H, M)
    p: Array  # (B, H, M, N), before dropout
    scaled_mask: Array | None  # (B, H, M, N), X = keep/(1 − p), p rounded to 1/65536
    slope: Array | None  # (B, H, M, N), φ′ of the scores by q·k·scale, None if it is 1
    softmax_scale: float
    options: Options


class Gradients(NamedTuple):
    """Gradients of q, k, v, bias and sinks, with their shapes; None for those that were None."""

    dq: Array
    dk: Array
    dv: Array
    dbias: Array | None = None
    dsinks: Array | None = None


def check(q: Any, k: Any, v: Any, options: Options) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(q=q, k=k, v=v, bias=options.bias)
    check_shapes(q, k, v, options)


def check_shapes(q: Any, k: Any, v: Any, options: Options) -> tuple[int, int, int, int, int]:
    """Refuse what either side cannot take, except dtypes; return B, H, M, K and N."""
    checks.shape("q", q, ("B", "H", "M", "D"))
    B, H, M, D = (int(n) for n in q.shape)
    checks.head_dim("q", D)
    checks.shape("k", k, (B, "K", "N", D))
    K, N = int(k.shape[1]), int(k.shape[2])
    checks.require(H % K == 0, "k.shape[1]", K, f"a divisor of q.shape[1], {H}")
    checks.shape("v", v, (B, K, N, D))
    check_rotary(options.rotary, q, k)
    attention_scores.check(options, B, H, M, N)
    checks.seed(options.seed, q)
    checks.same_device(
        q=q, mask=options.mask, key_lengths=options.key_lengths, sinks=options.sinks,
        alibi_slopes=options.alibi_slopes, cu_seqlens_q=options.cu_seqlens_q,
        cu_seqlens_k=options.cu_seqlens_k, block_mask=options.block_mask,
    )  # fmt: skip
    return B, H, M, K, N


def check_backward(dout: Any, dlse: Any, q: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(q=q, dout=dout)
    checks.shape("dout", dout, tuple(int(n) for n in q.shape))
    if dlse is not None:
        checks.floating(dlse=dlse)
        checks.shape("dlse", dlse, tuple(int(n) for n in q.shape[:3]))
    checks.same_device(q=q, dlse=dlse)


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    softmax_scale: float | None = None,
    causal: bool | str = False,
    window_size: Window | None = None,
    softcap: float | None = None,
    score_mod: ScoreMod | None = None,
    alibi_slopes: Array | None = None,
    bias: Array | None = None,
    sinks: Array | None = None,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    rotary: Rotary | None = None,
    block_mask: Array | None = None,
    block_size: BlockSize | None = None,
) -> tuple[Array, Cache]:
    """Return, for every query, the weighted sum of the values of the keys it attends to.

    Args:
        q: (B, H, M, D), floating, D ≤ 512.
        k, v: (B, K, N, D), of q's dtype; K divides H, and G = H/K consecutive heads of q share a
            head of k and v (grouped-query attention; multi-query where K = 1).
        softmax_scale: multiplies the products of queries and keys; 1/√D by default.
        causal: query i attends to keys j ≤ i + N − M (True or "bottom-right": the last query sees
            every key) or j ≤ i ("top-left").
        window_size: (left, right): at most this many keys before and after that diagonal, None for
            any number. `causal` leaves none after it.
        softcap: positive; s becomes softcap·tanh(s/softcap) (Gemma 2).
        score_mod: a function of the scores, and its derivative.
        alibi_slopes: broadcastable to (B, H), floating: s loses slope·|distance to the diagonal|
            (Press et al. 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input
            Length Extrapolation").
        bias: added to the scores, of q's dtype, broadcastable to (B, H, M, N). In the kernel, which
            works in powers of 2, anything beyond ±2.3e38 is ±∞.
        sinks: (H,), floating: the score of a key without a value, for every query of a head.
        mask: bool, broadcastable to (B, H, M, N); True where a query may attend.
        key_lengths: (B,), int32 or int64; keys at or after a batch element's length are padding,
            which must be finite (the kernel does not read it). A length below 0 counts as 0, one
            above N as N.
        dropout_p: probability of dropping a weight, after the softmax.
        seed: determines the dropout mask: a number, or a 0-d int64 array that holds it.
        cu_seqlens_q, cu_seqlens_k: (S + 1,), int32, both or neither: q (1, H, M, D) holds S
            sequences of queries one after the other, k and v hold their keys and values; sequence s
            is rows cu_seqlens[s] … cu_seqlens[s + 1] − 1, possibly none. The offsets start at 0,
            never decrease, and end at M and N. In all other arguments the batch axis then counts
            sequences: `mask` and `bias` broadcast to (S, H, max_seqlen_q, max_seqlen_k),
            `key_lengths` is (S,), and each sequence has its own diagonal.
        max_seqlen_q, max_seqlen_k: upper bounds of the lengths. On a GPU neither these nor the
            values of cu_seqlens are checked: that would mean waiting for it.
        rotary: rotates q and k by their positions before all else (Su et al. 2021, "RoFormer").
        block_mask: bool, broadcastable to (B, H, ⌈M/rows⌉, ⌈N/columns⌉), or if packed to
            (S, H, ⌈max_seqlen_q/rows⌉, ⌈max_seqlen_k/columns⌉): True where the queries of a block
            may attend to its keys. It applies in addition to `mask` and all else that hides pairs.
        block_size: (rows, columns) of a block, ≥ 1, or one number for both.

    Returns:
        out (B, H, M, D), of q's dtype, and a cache whose `lse` (B, H, M) is the natural-log
        log-sum-exp, in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, sinks, mask,
        key_lengths, dropout_p, seed, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        rotary, block_mask, block_size,
    )  # fmt: skip
    check(q, k, v, options)
    dtype, (q, k, v) = q.dtype, (widened(x) for x in (q, k, v))
    # (0) queries and keys at their positions
    if rotary is not None:
        q, k = turn(q, *rotary.of_q), turn(k, *rotary.of_k)
    q = unpack(q, cu_seqlens_q, max_seqlen_q)
    k, v = (unpack(x, cu_seqlens_k, max_seqlen_k) for x in (k, v))
    scale = options.scale(q.shape[-1])
    # (1) S = φ(scale·q·kᵀ) + …, −∞ where masked
    s = unfold_groups(fold_groups(q, k) @ scaled_transpose(k, scale), q)  # (B, H, M, N)
    s, slope = attention_scores.scores(s, options)
    live = attention_scores.attended(s.shape, options)
    if live is not None:
        np.copyto(s, -np.inf, where=~live)
    # (2) P̃ = exp(S − m), m the row's maximum, so that exp cannot overflow
    # (B, H, M, 1); fmax is quicker than max and ignores NaN, which s itself keeps
    top = np.fmax.reduce(s, axis=-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        sink = sinks.astype(s.dtype)[:, None, None]  # (H, 1, 1)
        top = np.maximum(top, sink)
    top[top == -np.inf] = 0
    s -= top
    p = np.exp(s, out=s)
    # (3) ℓ = rowsum P̃ + exp(sink − m), lse = m + log ℓ, P = P̃/ℓ
    total = np.einsum("bhmn->bhm", p)[..., None]  # (B, H, M, 1)
    if sinks is not None:
        total += np.exp(sink - top)
    with np.errstate(divide="ignore"):  # log 0 = −∞ where nothing is attended
        lse = (top + np.log(total))[..., 0]
    total[total == 0] = 1
    p /= total
    # (4) out = (P∘X)·v
    scaled_mask = None
    if dropout_p > 0.0:
        scaled_mask = dropout.attention_scaled_mask(p.shape, dropout_p, seed, p.dtype)
    dropped = p if scaled_mask is None else p * scaled_mask
    out = unfold_groups(fold_groups(dropped, k) @ v, q)  # (B, H, M, D)
    out, lse = (pack(x, cu_seqlens_q) for x in (rounded(out, dtype), lse))
    return out, Cache(q, k, v, out, lse, p, scaled_mask, slope, scale, options)


def backward(
    dout: Array,
    cache: Cache,
    dlse: Array | None = None,
    *,
    of_bias: bool = True,
    into: checks.Into = None,
) -> Gradients:
    """Return the gradients of q, k, v, bias and sinks.

    With Z = scale·q·kᵀ, φ′ the slope of the scores by Z, and X = keep/(1 − p) of dropout:

        (5) P = exp(S − lse)
        (6) dP = (dout·vᵀ)∘X
        (7) Δ = rowsum(dout∘out) − dlse
        (8) dS = P∘(dP − Δ),  dbias = dS,  dsink = −Σ exp(sink − lse)·Δ,  dZ = φ′∘dS
        (9) dq = scale·dZ·k,  dk = scale·dZᵀ·q,  dv = (P∘X)ᵀ·dout

    The softmax's Jacobian is diag(p) − p·pᵀ, so Σ_j p_ij·dP_ij, which is Σ_d dout_id·out_id, is
    subtracted from dP_ij; ∂lse_i/∂s_ij = p_ij adds dlse_i. A sink is one more score, with dP = 0.

    Args:
        dout: gradient of out, (B, H, M, D), of q's dtype.
        cache: from `forward`.
        dlse: gradient of `cache.lse`, (B, H, M), floating, or None.
        of_bias: whether dbias is computed, if there is a bias.
        into: (dq, dk, dv), arrays to write to and return instead of new ones; each may be None.

    Returns:
        dq, dk and dv, with the shapes of q, k and v; dbias and dsinks, with those of bias and
        sinks, or None. dbias is summed over the axes along which bias was broadcast.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    q, k, v, out, lse, p, scaled_mask, slope, scale, options = cache
    checks.flag("of_bias", of_bias)
    check_backward(dout, dlse, out)
    starts, longest = options.cu_seqlens_q, options.max_seqlen_q
    dtype = out.dtype
    dout, out = (unpack(widened(x), starts, longest) for x in (dout, out))
    # (5) P = exp(S − lse): kept here, computed again by the kernel
    dropped = p if scaled_mask is None else p * scaled_mask
    # (6) dP = (dout·vᵀ)∘X
    dp = unfold_groups(fold_groups(dout, k) @ v.mT, q)  # (B, H, M, N)
    if scaled_mask is not None:
        dp *= scaled_mask
    # (7) Δ = rowsum(dout∘out) − dlse: what the normalisation takes away
    delta = np.einsum("bhmd,bhmd->bhm", dout, out)  # (B, H, M)
    if dlse is not None:
        delta -= unpack(dlse, starts, longest)
    # (8) dS = P∘(dP − Δ), dbias = dS, dsink = −Σ exp(sink − lse)·Δ, dZ = φ′∘dS
    dp -= delta[..., None]
    ds = np.multiply(p, dp, out=dp)
    dbias = dsinks = None
    if options.bias is not None and of_bias:
        dbias = unbroadcast(ds, options.bias.shape)
    if options.sinks is not None:
        # +∞ stands in for −∞, and past the last query, so that a sink has no share there
        lse = unpack(np.where(lse == -np.inf, np.inf, lse), starts, longest, np.inf)
        shares = np.exp(options.sinks.astype(lse.dtype)[:, None] - lse)  # (B, H, M)
        dsinks = -(shares * delta).sum(axis=(0, 2)).astype(options.sinks.dtype)  # (H,)
    if slope is not None:
        ds = np.multiply(ds, slope, out=ds, where=p != 0)
    ds *= scale
    # (9) dq = scale·dZ·k, dk = scale·dZᵀ·q, dv = (P∘X)ᵀ·dout
    dq = unfold_groups(fold_groups(ds, k) @ k, q)  # (B, H, M, D)
    dk = fold_groups(ds, k).mT @ fold_groups(q, k)  # (B, K, N, D), over the heads that share k
    dv = fold_groups(dropped, k).mT @ fold_groups(dout, k)
    dq, (dk, dv) = pack(dq, starts), (pack(x, options.cu_seqlens_k) for x in (dk, dv))
    # (0) rotated back: a rotation's transpose is its inverse
    if options.rotary is not None:
        dq, dk = turn_back(dq, *options.rotary.of_q), turn_back(dk, *options.rotary.of_k)
    given = checks.into(into, dq=dq.shape, dk=dk.shape, dv=dv.shape)
    dq, dk, dv = (rounded(x, dtype, to) for x, to in zip((dq, dk, dv), given, strict=True))
    return Gradients(dq, dk, dv, None if dbias is None else rounded(dbias, dtype), dsinks)


def fold_groups(x: Array, k: Array) -> Array:
    """Stack the queries of heads that share a KV head: (B, K, G·M, …)."""
    return x.reshape(*k.shape[:2], -1, x.shape[-1])


def scaled_transpose(k: Array, scale: float) -> Array:
    """Return kᵀ·scale, (B, K, D, N), in C order, with which BLAS multiplies small ones faster."""
    return np.asarray(np.multiply(k.mT, k.dtype.type(scale), order="C"))


def unfold_groups(x: Array, q: Array) -> Array:
    """Separate the queries of each head of q again: (B, H, M, …)."""
    return x.reshape(*q.shape[:3], x.shape[-1])


def unbroadcast(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of this shape was broadcast to x's."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return np.asarray(x.sum(axis=axes, keepdims=True))
