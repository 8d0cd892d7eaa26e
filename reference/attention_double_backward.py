r"""The backward of attention's backward: gradients of gradients.

Let ℓ be a loss that depends on dq, dk and dv, with derivatives ddq = ∂ℓ/∂dq, ddk and ddv. What are
its derivatives by q, k, v, dout and dlse? They are needed for a gradient penalty (Gulrajani et al.
2017, "Improved Training of Wasserstein GANs"), for forces in a loss, and for products with the
Hessian (Pearlmutter 1994).

Backward is (see `attention`; P the weights, X the dropout mask with its scale, sums over j are over
keys; the scores are φ(Z), Z = scale·q·kᵀ, plus what is added to them)

    (6) dP = (dout·vᵀ)∘X    (7) Δ_i = Σ_j P_ij·dP_ij − dlse_i    (8) dS = P∘(dP − Δ)
    (9) dq = scale·dZ·k,  dk = scale·dZᵀ·q,  dv = (P∘X)ᵀ·dout,  with dZ = φ′∘dS

and is differentiated here line by line. By (9), ℓ depends on dZ and on P∘X:

    (10) A = ∂ℓ/∂dZ = scale·(ddq·kᵀ + q·ddkᵀ),   G = ∂ℓ/∂dS = φ′∘A,   E = ∂ℓ/∂(P∘X) = dout·ddvᵀ

The derivative of dS by Δ is −P, so ∂ℓ/∂Δ_i = −g_i, and dlse, which (7) subtracts, gets

    (11) ddlse = g,   g_i = Σ_j P_ij·G_ij.

The derivatives of dS and of Δ by dP are both P, so ∂ℓ/∂dP = P∘(G − g), and with the X of (6)

    (12) R = P∘X∘(G − g)

is passed on to v and dout. What is left is P, which occurs in (8), in Δ and in P∘X:

    ∂ℓ/∂P = W = (dP − Δ)∘G − g·dP + X∘E,   and   T = ∂ℓ/∂S = P∘(W − Σ_j P∘W).

W is (dP − Δ)∘(G − g) + X∘E up to −g·Δ, which is the same for all keys of a query and so cancels
in T. As Σ_j P∘dP = Δ + dlse, the mean that T subtracts from W is then

    (13) c_i = Σ_j P_ij·(dP_ij − Δ_i)·G_ij + Σ_j P_ij·X_ij·E_ij − g_i·dlse_i
    (14) T = P∘((dP − Δ)∘(G − g) − c) + P∘X∘E.

A sink is one more column of P, a share π_i of the sum, with dP = G = E = 0 and hence W = 0. Without
−g·Δ its W would be g·Δ, so the mean is larger by π·g·Δ; and as the weights of the keys add up to
only 1 − π, their Σ_j P_ij·(dP_ij − Δ_i) is dlse + π·Δ, which makes up for it: (13) and (14), whose
sums are over keys, hold unchanged.

Z enters the scores, and also dZ = φ′∘dS, where φ′ changes by φ″, element by element, and ℓ by A∘dS:

    (15) U = ∂ℓ/∂Z = φ′∘T + φ″∘dS∘A
    (16) ∂ℓ/∂q = scale·(U·k + dZ·ddk),   ∂ℓ/∂k = scale·(Uᵀ·q + dZᵀ·ddq),   ∂ℓ/∂v = Rᵀ·dout,
         ∂ℓ/∂dout = R·v + (P∘X)·ddv

where the second terms of ∂ℓ/∂q and ∂ℓ/∂k come from (9), in which dZ multiplies k and q. These four
and ddlse are returned, as dq, dk, dv, ddout and ddlse. Without softcap U = T and dZ = dS. With it
φ(Z) = κ·tanh(Z/κ), so with r = tanh(Z/κ)

    φ′ = 1 − r²,   φ″ = −2·r·φ′/κ,

and a function ψ of the capped scores turns φ′ into ψ′·φ′, and φ″ into ψ″·φ′² + ψ′·φ″.

ddout and ddlse are the derivatives of out and lse along (ddq, ddk, ddv); ∂ℓ/∂(q, k, v) is
the Hessian of ⟨out, dout⟩ + ⟨lse, dlse⟩ times it.

With rotary positions, q → R_q·q and k → R_k·k, the q and k above are the rotated ones, and backward
has rotated dq and dk back. A rotation's transpose is its inverse:

    (0) R_q·ddq and R_k·ddk stand for ddq and ddk    (17) ∂ℓ/∂q and ∂ℓ/∂k are rotated back.

ALiBi, a bias and sinks are constants here. Packed sequences are unpacked, as in `attention`.

`B` batch, `H` heads, `K` KV heads, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.attention import Cache, check_backward, fold_groups, unfold_groups
from twofold.reference.attention_scores import Options, pack, unpack
from twofold.reference.precision import rounded, widened
from twofold.reference.rotary import turn, turn_back

Array = np.ndarray[Any, np.dtype[Any]]


class Gradients(NamedTuple):
    """Gradients of q, k, v, dout and dlse, with their shapes; the last is None without a dlse."""

    dq: Array
    dk: Array
    dv: Array
    ddout: Array
    ddlse: Array | None = None


def check(ddq: Any, ddk: Any, ddv: Any, dout: Any, dlse: Any, q: Any, k: Any, options: Any) -> None:
    """Raise TypeError or ValueError for what either side cannot take; q and k are as given."""
    if options.score_mod is not None:
        given = options.score_mod.second_derivative
        name = "cache.options.score_mod.second_derivative"
        checks.require(given is not None, name, given, "a function, as the derivative is")
    check_backward(dout, dlse, q)
    checks.floating(q=q, ddq=ddq, ddk=ddk, ddv=ddv)
    for name, x, like in (("ddq", ddq, q), ("ddk", ddk, k), ("ddv", ddv, k)):
        checks.shape(name, x, tuple(int(n) for n in like.shape))


def backward(
    ddq: Array, ddk: Array, ddv: Array, dout: Array, cache: Cache, dlse: Array | None = None
) -> Gradients:
    """Return the gradients of the inputs from which `attention.backward` computed dq, dk and dv.

    Args:
        ddq: gradient of dq, (B, H, M, D), of q's dtype.
        ddk, ddv: of dk and dv, (B, K, N, D).
        dout, cache, dlse: as they were given to `attention.backward`.

    Returns:
        the gradients of q, k, v, dout and, if given, dlse.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be; also where
            a function of the scores lacks its second derivative.
    """
    options, rotary = cache.options, cache.options.rotary
    starts_q, starts_k = options.cu_seqlens_q, options.cu_seqlens_k
    check(ddq, ddk, ddv, dout, dlse, cache.out, pack(cache.k, starts_k), options)
    q, k, v, p, scale = cache.q, cache.k, cache.v, cache.p, cache.softmax_scale
    scaled_mask = cache.scaled_mask
    dtype, (ddq, ddk, ddv, dout) = dout.dtype, (widened(x) for x in (ddq, ddk, ddv, dout))
    # (0) R_q·ddq and R_k·ddk in place of ddq and ddk
    if rotary is not None:
        ddq, ddk = turn(ddq, *rotary.of_q), turn(ddk, *rotary.of_k)
    ddq, dout = (unpack(x, starts_q, options.max_seqlen_q) for x in (ddq, dout))
    ddk, ddv = (unpack(x, starts_k, options.max_seqlen_k) for x in (ddk, ddv))
    of_dlse = None if dlse is None else dlse.dtype
    dlse = None if dlse is None else unpack(dlse, starts_q, options.max_seqlen_q)

    def pairs(x: Array, y: Array) -> Array:
        """Multiply (B, H, M, D) and (B, K, N, D) to (B, H, M, N)."""
        return unfold_groups(fold_groups(x, k) @ y.mT, q)

    def over_keys(x: Array, y: Array) -> Array:
        """Multiply (B, H, M, N) and (B, K, N, D) to (B, H, M, D)."""
        return unfold_groups(fold_groups(x, k) @ y, q)

    def over_queries(x: Array, y: Array) -> Array:
        """Multiply (B, H, M, N) transposed and (B, H, M, D) to (B, K, N, D)."""
        return fold_groups(x, k).mT @ fold_groups(y, k)

    # (5) P = exp(S − lse): kept here, computed again by the kernel
    dropped = p if scaled_mask is None else p * scaled_mask
    # (6) dP = (dout·vᵀ)∘X
    dp = pairs(dout, v)
    if scaled_mask is not None:
        dp *= scaled_mask
    # (7) Δ = rowsum(P∘dP) − dlse, not rowsum(dout∘out): out was rounded to q's dtype
    delta = (p * dp).sum(axis=-1, keepdims=True)  # (B, H, M, 1)
    if dlse is not None:
        delta -= dlse[..., None]
    # (8) dS = P∘(dP − Δ)
    centred = dp - delta
    ds = p * centred
    # (10) A = scale·(ddq·kᵀ + q·ddkᵀ), G = φ′∘A, E = dout·ddvᵀ
    a = (pairs(ddq, k) + pairs(q, ddk)) * scale
    slope = None if cache.slope is None else np.where(p == 0, 0, cache.slope)
    gs = a if slope is None else a * slope
    e = pairs(dout, ddv)
    # (11) ddlse = g = rowsum(P∘G)
    g = (p * gs).sum(axis=-1, keepdims=True)  # (B, H, M, 1)
    # (12) R = P∘X∘(G − g)
    away = gs - g
    r = dropped * away
    # (13) c = rowsum(dS∘G + P∘X∘E) − g·dlse: what the normalisation takes away from ∂ℓ/∂P
    c = (ds * gs + dropped * e).sum(axis=-1, keepdims=True)  # (B, H, M, 1)
    if dlse is not None:
        c -= g * dlse[..., None]
    # (14) T = P∘((dP − Δ)∘(G − g) − c) + P∘X∘E
    t = p * (centred * away - c) + dropped * e
    # (15) U = φ′∘T + φ″∘dS∘A, dZ = φ′∘dS
    u, dz = t, ds
    if slope is not None:
        curvature = second_derivative(pairs(q * q.dtype.type(scale), k), options)
        u, dz = slope * t + np.where(p == 0, 0, curvature) * ds * a, slope * ds
    # (16) ∂ℓ/∂q, ∂ℓ/∂k, ∂ℓ/∂v and ∂ℓ/∂dout
    dq = (over_keys(u, k) + over_keys(dz, ddk)) * scale
    dk = (over_queries(u, q) + over_queries(dz, ddq)) * scale
    dv = over_queries(r, dout)
    ddout = over_keys(r, v) + over_keys(dropped, ddv)
    dq, ddout = (pack(x, starts_q) for x in (dq, ddout))
    dk, dv = (pack(x, starts_k) for x in (dk, dv))
    # (17) rotated back: the gradients of q and k as given
    if rotary is not None:
        dq, dk = turn_back(dq, *rotary.of_q), turn_back(dk, *rotary.of_k)
    dq, dk, dv, ddout = (rounded(x, dtype) for x in (dq, dk, dv, ddout))
    ddlse = None if dlse is None else rounded(pack(g[..., 0], starts_q), of_dlse)
    return Gradients(dq, dk, dv, ddout, ddlse)


def second_derivative(s: Array, options: Options) -> Any:
    """Return φ″, the second derivative of the scores by Z, here s (B, H, M, N)."""
    dtype = s.dtype
    slope: Any = 1.0
    curvature: Any = 0.0
    cap = options.cap
    if cap is not None:
        ratio = np.tanh(s / cap)
        slope = 1 - ratio * ratio
        curvature, s = -2 * ratio * slope / cap, cap * ratio
    if options.score_mod is not None and options.score_mod.second_derivative is not None:
        mod, where = options.score_mod, np.ogrid[tuple(slice(n) for n in s.shape)]
        further = options.score_mod.second_derivative(s, *where, mod.args)
        with np.errstate(invalid="ignore"):  # they may be infinite where nothing is attended
            curvature = further * slope * slope + mod.derivative(s, *where, mod.args) * curvature
    return np.asarray(curvature).astype(dtype, copy=False)
