r"""Scaled dot-product attention.

    out = softmax(q·kᵀ·scale)·v,   lse_i = log Σ_j exp(s_ij)

Vaswani et al. 2017, "Attention Is All You Need", equation (1); the backward as in Dao et al. 2022,
"FlashAttention", appendix B.2, with the gradient of lse beside it.

`B` batch, `H` heads, `M` queries, `N` keys, `D` head_dim. The steps are numbered; the kernel
carries the same numbers where it does the same thing.

A query that may attend to no key has output 0, lse −∞ and gradient 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks, dropout

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """What `backward` needs. `lse` and the weights `p` are there to be looked at, too."""

    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array  # (B, H, M)
    p: Array  # (B, H, M, N), before dropout
    keep: Array | None  # (B, H, M, N), keep/(1 − dropout_p), None without dropout
    softmax_scale: float


class Gradients(NamedTuple):
    """Gradients of q, k and v, shaped as they are."""

    dq: Array
    dk: Array
    dv: Array


def check(
    q: Any,
    k: Any,
    v: Any,
    softmax_scale: float | None,
    mask: Any,
    key_lengths: Any,
    dropout_p: float,
    seed: int,
) -> None:
    """Refuse what either side cannot take."""
    checks.floating(q=q, k=k, v=v)
    checks.shape("q", q, ("B", "H", "M", "D"))
    B, H, M, D = (int(n) for n in q.shape)
    checks.require(D <= 256, "q.shape[-1]", D, "at most 256")
    checks.shape("k", k, (B, H, "N", D))
    N = int(k.shape[2])
    checks.shape("v", v, (B, H, N, D))
    if softmax_scale is not None:
        finite = math.isfinite(softmax_scale)
        checks.require(finite, "softmax_scale", softmax_scale, "finite")
    if mask is not None:
        checks.boolean(mask=mask)
        checks.broadcastable("mask", mask, (B, H, M, N))
    if key_lengths is not None:
        checks.integer(key_lengths=key_lengths)
        checks.shape("key_lengths", key_lengths, (B,))
    checks.same_device(q=q, mask=mask, key_lengths=key_lengths)
    checks.probability("dropout_p", dropout_p)
    checks.seed(seed)


def check_backward(dout: Any, dlse: Any, q: Any) -> None:
    """Refuse what either side cannot take."""
    checks.floating(q=q, dout=dout)
    checks.shape("dout", dout, tuple(int(n) for n in q.shape))
    if dlse is not None:
        checks.array("dlse", dlse)
        checks.shape("dlse", dlse, tuple(int(n) for n in q.shape[:3]))
    checks.same_device(q=q, dlse=dlse)


def forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Array, Cache]:
    """Let every query gather the values of the keys it attends to.

    Args:
        q: (B, H, M, D), floating, D ≤ 256.
        k, v: (B, H, N, D).
        softmax_scale: multiplies the scores; 1/√D by default.
        causal: query i attends to keys j ≤ i + N − M (the last query sees every key).
        mask: bool, broadcastable to (B, H, M, N); True where a query may attend.
        key_lengths: (B,), int32 or int64; keys at or after a batch's length are padding.
        dropout_p: probability of dropping a weight, after the softmax.
        seed: names the dropout mask.

    Returns:
        out (B, H, M, D) and a cache whose `lse` (B, H, M) is the natural-log log-sum-exp.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(q, k, v, softmax_scale, mask, key_lengths, dropout_p, seed)
    scale = 1 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    # (1) scores
    s = (q * q.dtype.type(scale)) @ k.mT  # (B, H, M, N)
    live = attended(s.shape, causal, mask, key_lengths)
    if live is not None:
        np.copyto(s, -np.inf, where=~live)
    # (2) weights, against each row's maximum so that exp cannot overflow
    top = s.max(axis=-1, keepdims=True)  # (B, H, M, 1)
    top[top == -np.inf] = 0
    s -= top
    p = np.exp(s, out=s)
    # (3) log-sum-exp
    total = p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):  # log 0 = −∞ where nothing is attended
        lse = (top + np.log(total))[..., 0]
    total[total == 0] = 1
    p /= total
    # (4) output
    keep = None
    if dropout_p > 0.0:
        keep = dropout.attention_scaled_mask(p.shape, dropout_p, seed, p.dtype)
    out = (p if keep is None else p * keep) @ v  # (B, H, M, D)
    return out, Cache(q, k, v, out, lse, p, keep, scale)


def backward(dout: Array, cache: Cache, dlse: Array | None = None) -> Gradients:
    """Return the gradients, given those of `out` and, optionally, of `cache.lse`.

    The softmax's Jacobian is diag(p) − p·pᵀ, so dS = p∘(dP − Δ) with Δ_i = Σ_j p_ij·dP_ij, which is
    Σ_d dout_id·out_id; lse has ∂lse_i/∂s_ij = p_ij, so its gradient joins Δ.
    """
    q, k, v, out, _, p, keep, scale = cache
    check_backward(dout, dlse, q)
    # (5) weights again: kept here, computed again by the kernel
    dropped = p if keep is None else p * keep
    # (6) gradient of the weights
    dp = dout @ v.mT  # (B, H, M, N)
    if keep is not None:
        dp *= keep
    # (7) what the normalisation takes away
    delta = np.einsum("bhmd,bhmd->bhm", dout, out)
    if dlse is not None:
        delta -= dlse
    # (8) gradient of the scores
    dp -= delta[..., None]
    ds = np.multiply(p, dp, out=dp)
    ds *= scale
    # (9) gradients of the inputs
    return Gradients(ds @ k, ds.mT @ q, dropped.mT @ dout)


def attended(
    shape: tuple[int, ...], causal: bool, mask: Array | None, key_lengths: Array | None
) -> Array | None:
    """Return which pairs take part, broadcastable to (B, H, M, N); None if all do."""
    M, N = shape[-2:]
    live = mask
    if causal:
        diagonal = np.arange(N) <= np.arange(M)[:, None] + N - M  # (M, N)
        live = diagonal if live is None else live & diagonal
    if key_lengths is not None:
        present = np.arange(N) < key_lengths[:, None, None, None]  # (B, 1, 1, N)
        live = present if live is None else live & present
    return live
