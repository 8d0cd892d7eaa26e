r"""How far a kernel may be from the backward of attention's backward, derived.

Running error analysis (`rounding.Approx`) of the kernel's steps (5)–(16), in the kernel's order; E
with an index bounds a number's error, u and the other constants are those of `machines.Machine`.

(5) P = exp2(t − lse·log₂e) with the scores t of `attention_problem` and lse as forward stored it:
    E_t and E_lse are those of attention (`attention_bound`, steps (1) to (3)), so P includes the
    error of lse, and is step (5) there.
(6) dP and (10) A and E are products on the matrix unit; A is the sum of two, times a scale. φ′ and
    φ″ are formulas of one more product, softcap's own, or those of a user's function, which are run
    on numbers that carry their errors; G is φ′∘A.
(7) Δ = ΣP∘dP − dlse, (11) g = ΣP∘G, (13) c = Σ(P∘(dP − Δ)∘G + P∘X∘E) − g·dlse are float32 sums, in
    any order, of numbers that were never cast. Unlike backward's Δ, which is computed from the
    stored output, this one contains no cast and needs no analysis of its own.
    Nothing is used of c beyond its formula: Δ's error moves c by E_Δ·Σ P|G|, which is of size u, as
    E_Δ is. Centred, dP − Δ keeps that sum free of cancellation of large sums: its rounding is
    u·Σ P|dP − Δ||G|, not u·Σ P|dP||G|.
(12) R, (14) T and (15) U, dZ are sums of products, each with its rounding; dZ, R, U and P∘X are
    cast to the storage dtype before they are multiplied.
(16) What is summed on the matrix unit is one sum: dq of the 2N products of (U, dZ) with (k, ddk),
    dk of 2·G·M, ddout of 2N, dv of G·M. The scale and the cast of the result round.

A pair that does not take part is exact: no error. Where Δ, g or c have no bound, a number may have
overflowed, and 0·∞ is no number: nothing is claimed of anything that such a query takes part in.

In the probabilistic bound the casts of dZ, R, U and P∘X are fresh in the sums of (16), and float32
sums have √n for n; the rest is as above.

(0) Rotary positions rotate q, k, ddq and ddk in float32, each is cast, and what is summed in (16)
is stored, read again, rotated back and stored again, (17), as attention's gradients are
(`attention_rotary`).

A packed sequence is a batch whose other pairs are dead (`attention_domain.problem`).

`B` batch, `H` heads, `K` heads of keys and values, `M` queries, `N` keys, `D` head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twofold.core.verify.attention_bound import Forward, dropped, partnered
from twofold.core.verify.attention_problem import Problem, exp2, fold_groups, folded, unfold_groups
from twofold.core.verify.rounding import Approx, exact, machine, matmul, tanh


class Backward(NamedTuple):
    """The gradients, with their bounds."""

    dq: Approx
    dk: Approx
    dv: Approx
    ddout: Approx
    ddlse: Approx  # (B, H, M)


def backward(
    x: Problem, forward: Forward, ddq: Approx, ddk: Approx, ddv: Approx, dout: Approx, dlse: Approx
) -> Backward:
    """Bound the gradients; `dlse` is (B, H, M, 1)."""
    on, live, kept = x.q.on, x.live, x.kept

    def pairs(a: Approx, b: Approx) -> Approx:
        """Multiply (B, H, M, D) and (B, K, N, D) to (B, H, M, N)."""
        return unfold_groups(matmul(fold_groups(a, x), b.mT), x)

    with np.errstate(all="ignore"):
        # (5) weights again
        lse = forward.lse.where(np.isfinite(forward.lse.value))
        p = exp2(forward.t - lse * folded(1.0, on)).where(live)  # (B, H, M, N)
        weights = (p * dropped(x)).where(kept)
        # (6) gradient of the weights
        dp = (pairs(dout, x.v) * dropped(x)).where(kept)
        # (7) what the normalisation takes away
        delta = (p * dp).where(live).sum(-1, keepdims=True) - dlse  # (B, H, M, 1)
        # (8) gradient of the scores, in backward
        centred = dp - delta
        ds = (p * centred).where(live)
        # (10) gradients of dZ, of dS and of the dropped weights
        a, slope = (pairs(ddq, x.k) + pairs(x.q, ddk)) * x.scale, forward.slope
        gs = a if slope is None else (a * slope).where(live)
        e = (weights * pairs(dout, ddv)).where(kept)
        # (11) gradient of lse's gradient
        g = (p * gs).where(live).sum(-1, keepdims=True)
        # (12) gradient of the weights' gradient
        away = gs - g
        r = (weights * away).where(kept)
        # (13) what the normalisation takes away
        c = (ds * gs + e).where(live).sum(-1, keepdims=True) - g * dlse
        # (14) gradient of the scores
        t = (p * (centred * away - c) + e).where(live)
        # (15) gradient of the scaled products
        u, dz = t, ds
        if slope is not None:
            u = (slope * t + second_derivative(x) * ds * a).where(live)
            dz = (slope * ds).where(live)
        lost = ~(np.isfinite(delta.error) & np.isfinite(g.error) & np.isfinite(c.error))
        for b in (dz, r, u):
            b.error[np.broadcast_to(lost, b.error.shape)] = np.inf
        # (16) gradients of the inputs
        taking, keeping = live | lost, kept | lost
        dz, u = (fold_groups(a.stored().where(taking), x) for a in (dz, u))  # (B, K, G·M, N)
        r, weights = (fold_groups(a.stored().where(keeping), x) for a in (r, weights))
        q, ddq, dout = (fold_groups(a, x) for a in (x.q, ddq, dout))
        dq = unfold_groups(matmul(beside(u, dz), beside(x.k.mT, ddk.mT).mT), x) * x.scale
        dk = matmul(beside(u.mT, dz.mT), beside(q.mT, ddq.mT).mT) * x.scale
        dv = matmul(r.mT, dout)
        ddout = unfold_groups(matmul(beside(r, weights), beside(x.v.mT, ddv.mT).mT), x)
    attending, weighing = (partnered(fold_groups(a, x).mT) for a in (taking, keeping))
    statistics = machine("float64" if on.storage == "float64" else "float32")
    return Backward(
        dq.returned().where(partnered(taking)),
        dk.returned().where(attending),
        dv.returned().where(weighing),
        ddout.returned().where(partnered(keeping)),
        Approx(g.value, g.error, statistics).returned()[..., 0],
    )


def second_derivative(x: Problem) -> Approx:
    """Bound φ″, the second derivative of the scores in q·k·scale, (B, H, M, N)."""
    options, curvature, slope = x.options, exact(0.0, x.q.on), exact(1.0, x.q.on)
    s = unfold_groups(matmul(fold_groups(x.q, x), x.k.mT), x) * x.scale
    if options.softcap is not None:
        ratio = tanh(s / options.softcap)
        slope = 1.0 - ratio * ratio
        curvature, s = ratio * slope * -2.0 / options.softcap, ratio * options.softcap
    if options.score_mod is not None and options.score_mod.second_derivative is not None:
        mod, where = options.score_mod, np.ogrid[tuple(slice(n) for n in s.value.shape)]
        further = options.score_mod.second_derivative(s, *where, mod.args)
        curvature = further * slope * slope + mod.derivative(s, *where, mod.args) * curvature
    return curvature


def beside(a: Approx, b: Approx) -> Approx:
    """Put the columns of one matrix beside those of another."""
    fresh = None
    if a.fresh is not None or b.fresh is not None:
        none = (np.zeros_like(a.value), np.zeros_like(b.value))
        fresh = np.concatenate(
            [z if y.fresh is None else y.fresh for y, z in zip((a, b), none, strict=True)], -1
        )
    value, error = (np.concatenate(z, -1) for z in ((a.value, b.value), (a.error, b.error)))
    return Approx(value, error, a.on, fresh)
