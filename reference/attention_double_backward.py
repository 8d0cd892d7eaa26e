r"""The backward of attention's backward: gradients of gradients.

Given a loss ℓ of dq, dk and dv, by its derivatives ddq = ∂ℓ/∂dq, ddk and ddv, what are those by q,
k, v, dout and dlse? They are what a gradient penalty (Gulrajani et al. 2017, "Improved Training of
Wasserstein GANs"), forces in a loss, and products with the Hessian (Pearlmutter 1994) ask for.

Backward is (`attention`; P the weights, X the dropout mask with its scale, sums over j are over
keys)

    (6) dP = (dout·vᵀ)∘X    (7) Δ_i = Σ_j P_ij·dP_ij − dlse_i    (8) dS = P∘(dP − Δ)
    (9) dq = scale·dS·k,  dk = scale·dSᵀ·q,  dv = (P∘X)ᵀ·dout

and here it is taken back line by line. ℓ moves with dS and with P∘X as (9) says:

    (10) G = ∂ℓ/∂dS = scale·(ddq·kᵀ + q·ddkᵀ),   E = ∂ℓ/∂(P∘X) = dout·ddvᵀ

dS moves with Δ by −P, so ∂ℓ/∂Δ_i = −g_i, and lse's gradient, which is subtracted there, gets

    (11) ddlse = g,   g_i = Σ_j P_ij·G_ij.

dP moves dS by P, and Δ by P, so ∂ℓ/∂dP = P∘(G − g); through (6) and the second factor of E

    (12) R = P∘X∘(G − g)

is what goes to v and dout. What is left is P, which stands in (8), in Δ and in P∘X:

    ∂ℓ/∂P = W = (dP − Δ)∘G − g·dP + X∘E,   and   T = ∂ℓ/∂S = P∘(W − Σ_j P∘W).

W is (dP − Δ)∘(G − g) + X∘E but for −g·Δ, which is the same for all keys of a query, so that nothing
of it is left in T. As Σ_j P∘dP = Δ + dlse, what the mean of W takes away is then

    (13) c_i = Σ_j P_ij·(dP_ij − Δ_i)·G_ij + Σ_j P_ij·X_ij·E_ij − g_i·dlse_i
    (14) T = P∘((dP − Δ)∘(G − g) − c) + P∘X∘E.

A sink has dP = G = E = 0, hence W = 0: it is in no sum, and (13) and (14) stand as they are.

    (15) dq = scale·(T·k + dS·ddk),   dk = scale·(Tᵀ·q + dSᵀ·ddq),   dv = Rᵀ·dout,
         ddout = R·v + (P∘X)·ddv

where the second terms of dq and dk are G's. ddout and ddlse are the derivatives of out and lse
along (ddq, ddk, ddv); (dq, dk, dv) is the Hessian of ⟨out, dout⟩ + ⟨lse, dlse⟩ times it.

ALiBi, a bias and sinks are constants here. `B` batch, `H` heads, `K` heads of keys and values,
`M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.attention import Cache, apart, check_backward, together

Array = np.ndarray[Any, np.dtype[Any]]


class Gradients(NamedTuple):
    """Gradients of q, k, v, dout and dlse, shaped as they are; None for that of no dlse."""

    dq: Array
    dk: Array
    dv: Array
    ddout: Array
    ddlse: Array | None = None


def check(ddq: Any, ddk: Any, ddv: Any, dout: Any, dlse: Any, cache: Any) -> None:
    """Refuse what either side cannot take."""
    options = cache.options
    for name in ("softcap", "score_mod"):
        given = getattr(options, name)
        must = "None: its second derivative would be needed"
        checks.require(given is None, f"cache.options.{name}", given, must)
    packed = "packed" if options.packed else "of batches"
    checks.require(not options.packed, "cache", packed, "of batches: give each sequence one")
    D = int(cache.q.shape[-1])
    checks.require(D <= 256, "cache.q.shape[-1]", D, "at most 256")
    check_backward(dout, dlse, cache.q)
    checks.floating(q=cache.q, ddq=ddq, ddk=ddk, ddv=ddv)
    for name, x, like in (("ddq", ddq, cache.q), ("ddk", ddk, cache.k), ("ddv", ddv, cache.v)):
        checks.shape(name, x, tuple(int(n) for n in like.shape))


def backward(
    ddq: Array, ddk: Array, ddv: Array, dout: Array, cache: Cache, dlse: Array | None = None
) -> Gradients:
    """Return the gradients of what `attention.backward` made dq, dk and dv of.

    Args:
        ddq: gradient of dq, (B, H, M, D), of q's dtype.
        ddk, ddv: of dk and dv, (B, K, N, D).
        dout, cache, dlse: as they were given to `attention.backward`.

    Returns:
        the gradients of q, k, v, dout and, if it is there, dlse.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be; also where
            there was a softcap or a function of the scores.
    """
    check(ddq, ddk, ddv, dout, dlse, cache)
    q, k, v, p, keep, scale = cache.q, cache.k, cache.v, cache.p, cache.keep, cache.softmax_scale

    def pairs(x: Array, y: Array) -> Array:
        """Multiply (B, H, M, D) and (B, K, N, D) to (B, H, M, N)."""
        return apart(together(x, k) @ y.mT, q)

    def over_keys(x: Array, y: Array) -> Array:
        """Multiply (B, H, M, N) and (B, K, N, D) to (B, H, M, D)."""
        return apart(together(x, k) @ y, q)

    def over_queries(x: Array, y: Array) -> Array:
        """Multiply (B, H, M, N) transposed and (B, H, M, D) to (B, K, N, D)."""
        return together(x, k).mT @ together(y, k)

    # (5) weights again: kept here, computed again by the kernel
    dropped = p if keep is None else p * keep
    # (6) gradient of the weights
    dp = pairs(dout, v)
    if keep is not None:
        dp *= keep
    # (7) what the normalisation takes away
    delta = (p * dp).sum(axis=-1, keepdims=True)  # (B, H, M, 1)
    if dlse is not None:
        delta -= dlse[..., None]
    # (8) gradient of the scores
    centred = dp - delta
    ds = p * centred
    # (10) gradients of dS and of the dropped weights
    gs = (pairs(ddq, k) + pairs(q, ddk)) * scale
    e = pairs(dout, ddv)
    # (11) gradient of lse's gradient
    g = (p * gs).sum(axis=-1, keepdims=True)
    # (12) gradient of the weights' gradient
    away = gs - g
    r = dropped * away
    # (13) what the normalisation takes away
    c = (ds * gs + dropped * e).sum(axis=-1, keepdims=True)
    if dlse is not None:
        c -= g * dlse[..., None]
    # (14) gradient of the scores
    t = p * (centred * away - c) + dropped * e
    # (15) gradients of the inputs
    dq = (over_keys(t, k) + over_keys(ds, ddk)) * scale
    dk = (over_queries(t, q) + over_queries(ds, ddq)) * scale
    dv = over_queries(r, dout)
    ddout = over_keys(r, v) + over_keys(dropped, ddv)
    return Gradients(dq, dk, dv, ddout, None if dlse is None else g[..., 0])
