r"""Attention in FP8 (e4m3), with a scale per head.

    out = softmax(q·kᵀ·scale)·v,   q = q8·q_scale,   k = k8·k_scale,   v = v8·v_scale

e4m3 has four bits of exponent and three of significand: magnitudes from 2⁻⁹ to 448 and no
infinities (Micikevicius et al. 2022, "FP8 Formats for Deep Learning"; OCP "8-bit Floating Point
Specification"). A scale maps the largest number of a head to 448. Here 8-bit numbers are held in
arrays of any floating dtype whose elements e4m3 can represent; the mathematics on them is exact, so
that any loss of a kernel is its own.

`B` batch, `H` heads, `K` KV heads, `G` = H/K, `M` queries, `N` keys, `D` head_dim.
Steps (0) to (4) are those of `attention`, which is called. There is no backward.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from twofold.reference import attention, attention_scores, checks
from twofold.reference.attention_scores import BlockSize, Options, ScoreMod, Window, pack, unpack
from twofold.reference.precision import rounded, widened
from twofold.reference.rotary import Rotary

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 448.0
DIGITS = 3  # of the significand, after the point
LEAST_EXPONENT = -6  # below 2⁻⁶ numbers are 2⁻⁹ apart
LEAST_SCALE = 2.0**-126  # a smaller one would not be a normal float32


def check(
    q: Any, k: Any, v: Any, q_scale: Any, k_scale: Any, v_scale: Any, options: Options
) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        checks.array(name, x)
        checks.dtype(name, x, checks.dtype_name(q))
    checks.floating(bias=options.bias)
    B, H, M, K, N = attention.check_shapes(q, k, v, options)
    checks.floating(q_scale=q_scale, k_scale=k_scale, v_scale=v_scale)
    sequences = attention_scores.sizes(options, B, M, N)[0]
    checks.broadcastable("q_scale", q_scale, (sequences, H))
    checks.broadcastable("k_scale", k_scale, (sequences, K))
    checks.broadcastable("v_scale", v_scale, (sequences, K))
    checks.same_device(q=q, k=k, v=v, q_scale=q_scale, bias=options.bias)


def check_quantize(x: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(x=x)
    checks.shape("x", x, ("B", "H", "L", "D"))


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    q_scale: Array,
    k_scale: Array,
    v_scale: Array,
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
    out_dtype: Any = None,
) -> tuple[Array, Array]:
    """Return, for every query, the weighted sum of the values of the keys it attends to.

    Args:
        q: (B, H, M, D), floating, of e4m3 numbers; D ≤ 512.
        k, v: (B, K, N, D), of q's dtype; K divides H, and G = H/K consecutive heads of q share a
            head of k and v.
        q_scale: broadcastable to (B, H), floating: what q is multiplied by.
        k_scale, v_scale: broadcastable to (B, K), of q_scale's dtype. Packed sequences each have
            scales of their own: the shapes to broadcast to are (S, H) and (S, K).
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, sinks, mask,
            key_lengths, dropout_p, seed, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            rotary, block_mask, block_size: as in `attention.forward`.
        bias: as there, of any floating dtype.
        out_dtype: the output's dtype or its name, by default that of q times its scale.

    Returns:
        out (B, H, M, D), and lse (B, H, M), the natural-log log-sum-exp, in float32 (float64 beside
        float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    options = Options(
        softmax_scale, causal, window_size, softcap, score_mod, alibi_slopes, bias, sinks, mask,
        key_lengths, dropout_p, seed, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        rotary, block_mask, block_size,
    )  # fmt: skip
    check(q, k, v, q_scale, k_scale, v_scale, options)
    checks.floating(q=q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        held = np.array_equal(nearest(x), x, equal_nan=True)
        checks.require(held, name, "of numbers that float8_e4m3fn lacks", "of those that it has")
    asked = np.result_type(q, q_scale) if out_dtype is None else out_dtype
    dtype = checks.floating_dtype("out_dtype", asked, checks.NUMPY_FLOATING)
    q = scaled(q, q_scale, cu_seqlens_q, max_seqlen_q)
    k, v = (scaled(x, by, cu_seqlens_k, max_seqlen_k) for x, by in ((k, k_scale), (v, v_scale)))
    options = options._replace(bias=None if bias is None else bias.astype(q.dtype))
    out, cache = attention.forward(q, k, v, **options._asdict())
    return rounded(out, dtype), cache.lse


def quantize(x: Array) -> tuple[Array, Array]:
    """Return e4m3 numbers and their scales: x ≈ x8·scale.

    The scale of a head is its largest magnitude over 448, so that |x − x8·scale| is at most
    2⁻⁴·|x| + 2⁻¹⁰·scale.

    Args:
        x: (B, H, L, D), floating. A NaN, or ±∞, makes the scale of its head NaN, or ∞, and all of
            its x8·scale NaN.

    Returns:
        x8, shaped as x and here of x's dtype, and scale (B, H), float32 (here float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check_quantize(x)
    dtype, x = x.dtype, widened(x)  # float16 has no 2⁻¹²⁶
    largest = np.abs(x).max(axis=(2, 3))  # (B, H)
    scale = np.maximum(largest / x.dtype.type(LARGEST), x.dtype.type(LEAST_SCALE))
    return rounded(nearest(x / scale[..., None, None]), dtype), scale


def nearest(x: Array) -> Array:
    """Return the nearest e4m3 numbers, ties to even, at most ±448."""
    exponent = np.maximum(np.frexp(x)[1] - 1, LEAST_EXPONENT)
    step = np.ldexp(np.ones_like(x), exponent - DIGITS)
    return np.asarray(np.clip(np.rint(x / step) * step, -LARGEST, LARGEST))


def scaled(x: Array, scale: Array, starts: Array | None, longest: int | None) -> Array:
    """Return x times the scale of its head, and of its sequence if sequences are packed."""
    by = widened(np.asarray(scale))[..., None, None]  # (B, H, 1, 1), or what broadcasts to it
    return pack(unpack(widened(x), starts, longest) * by, starts)
