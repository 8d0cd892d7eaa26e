r"""How far a flash-attention kernel may be from attention: a componentwise bound, derived.

`B` batch, `H` heads, `M` queries, `N` keys, `D` head_dim; steps (1)–(9) are those of
`reference.attention`. A hat marks what the kernel computed, no hat the mathematics; u = 2⁻²⁴ and
the other constants are those of `rounding.Machine`; γ_n = nu/(1 − nu). Every step is the kernel's
own formula in running error analysis (`rounding.Approx`), except the softmax, whose weights the
kernel never holds: tile by tile it sums against a maximum that still changes. There the errors are
relative, so they are bounded as logarithms, where factors add up and shifts cancel.

**(1) Scores**, in base 2, as exp2 needs them: t = (q·k)·c with c = scale·log₂e. The product is one
of the matrix unit (`rounding.matmul`); c carries at most three roundings (of scale, log₂e and their
product) and the multiplication one more. E_t bounds |t̂ − t|.

**(2) Weights.** Let m_b be the running maximum after tile b, m_T the last. A weight of tile b is
computed as exp2(t̂ − m_b) and then multiplied by α = exp2(m_{b'−1} − m_{b'}) at every later
tile. The subtractions round, δ ≤ u each, so the exponents add up to

    (t̂ − m_b)(1 + δ) + Σ (m_{b'−1} − m_{b'})(1 + δ_{b'}) = t̂ − m_T + η,   |η| ≤ u·(m_T − t̂),

because all terms are negative: they telescope, errors and all. m_T is one of the t̂, so m_T − t̂ is
at most max t − t + 2·max E_t. Each exp2 errs by ε = `u_function`, each product with α by u, and
there are at most T − 1 of these, T the number of tiles; no matrix unit takes fewer than 16 keys.
So, up to the common shift m_T, log ŵ = ln 2·t ± Φ with

    Φ = ln 2·(E_t + u·(max t − t + 2·max E_t)) + ε' + (T − 1)(ε' + u'),   x' = −log(1 − x).

**(3) Log-sum-exp.** log Σŵ − log Σw is at most log Σ P·e^Φ, P the true weights, and at least
log Σ P·e^−Φ ≥ −Σ P·Φ ≥ −log Σ P·e^Φ by Jensen's inequality (the conditioning of log-sum-exp:
Blanchard, Higham & Higham 2021, "Accurately computing the log-sum-exp and softmax functions"), and
max Φ is no less, where e^Φ is too large for a number.
N − 1 additions, in any order and tiling, multiply by 1 ± γ_N. Together they are Θ. The shift
cancels in lse = (m_T + log₂ l)·ln 2, where the logarithm, a sum, ln 2 and a product round.

**(4) Output.** A normalised weight ŵ/l̂ is P·e^±(Φ + Θ), and the cast of ŵ to the storage dtype
changes it by at most u_storage of itself. Underflow (exp2, the rescaling and the cast flush to
zero) is an absolute error of at most tiny + tiny_storage in a weight whose row maximum is 1, hence
twice that in a normalised one, as l̂ ≥ ½. The rest is a product with v on the matrix unit, a
division, the dropout scale and the final cast. However wrong the weights, the output is an average
of values up to rounding, so |ô| ≤ 2·max|v̂|: that keeps the bound finite where the scores are too
uncertain to say more. This does not cover a score that may be infinite: ∞ − ∞ is not a number, and
nothing is claimed of such a row.

**(5) Weights again**, P = exp2(t − lse·log₂e), with t recomputed in tiles of another shape (E_t
again) and lse as stored, so E_lse. **(6) dP**, **(7) Δ** with the output as stored, so E_o, **(8)
dS** and **(9) dv** are running error analysis; dS and the dropped P are cast to the storage dtype
before their products. In **(9) dq** one error is known better: the error ε_i of Δ_i is one number
for all keys of a query, so it moves dq_i by ε_i·Σⱼ P̂ᵢⱼkⱼ, not by |ε_i|·Σⱼ P̂ᵢⱼ|kⱼ|.

Masked pairs are exact: they have no error, and a query or key without a partner has bound 0. But
where an output overflows, Δ is infinite, and 0·∞ is not a number: nothing is claimed of anything
that such a query takes part in, masked or not.

**What else is done to the scores** (`attention_scores`) is running error analysis in base e,
followed by a multiplication by log₂e; a sink is one more column of scores, with value 0. The user's
function runs on numbers that carry their errors (it is given `rounding.Approx`). Softcap and such
a function multiply the gradient by their slope. Queries of heads that share keys are rows of one
matrix. dbias is a sum of dS before its cast, in any order, a sink's gradient a sum of
−exp(sink − lse)·Δ.

**The probabilistic bound** (`rounding` has the assumptions). The casts of the weights, relative
errors δᵢⱼ of at most u_storage, and those of dS are fresh in the products that they enter, so they
add up in quadrature there. The bounds on the scores, the approximate functions, lse and the matrix
unit's truncated sums stay as they are. Δ holds casts that are two sums away:

    Δ̂ᵢ − Δᵢ = (what casts do not account for) + Σⱼ δᵢⱼPᵢⱼ·dPᵢⱼ + Σ_d ρᵢ_d·dout_d,

as Σ_d dout_d·Σⱼ δᵢⱼPᵢⱼvⱼ_d is Σⱼ δᵢⱼPᵢⱼ(dout·vⱼ); ρ is the cast of the output. The two sums are of
independent terms, σᵢ² their variance: Δ is off by λσᵢ instead of Σ|dout|·E_o. In dk the errors of
different queries add up, Σᵢ Pᵢⱼqᵢεᵢ, from casts of different rows of weights: λ·√(Σᵢ (Pᵢⱼqᵢσᵢ)²),
where rows of equal weights count as one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from twofold.core.verify.attention_problem import (
    LN2,
    Problem,
    exp2,
    fold_groups,
    folded,
    problem,
    scores,
    sinks,
    unbroadcast,
    unfold_groups,
    with_sinks,
)
from twofold.core.verify.rounding import (
    Approx,
    Array,
    alike,
    gamma,
    matmul,
)

__all__ = ["Backward", "Forward", "Problem", "backward", "forward", "partnered", "problem"]

SMALLEST_TILE = 16  # keys a matrix unit takes at once


class Forward(NamedTuple):
    """What forward hands to backward: scores in base 2, output and log-sum-exp as stored.

    `weights` are the normalised ones that were multiplied by v; `steady` is the part of the
    output's error that neither the casts of the weights nor that of the output account for.
    """

    t: Approx  # (B, H, M, N)
    slope: Approx | None  # (B, H, M, N), d(score)/d(q·k·scale); None where that is 1
    weights: Approx  # (B, H, M, N)
    out: Approx  # (B, H, M, D)
    steady: Array  # (B, H, M, D)
    lse: Approx  # (B, H, M, 1)


class Backward(NamedTuple):
    """The gradients; None for those of inputs that are absent."""

    dq: Approx
    dk: Approx
    dv: Approx
    dbias: Approx | None = None
    dsinks: Approx | None = None


def forward(x: Problem) -> Forward:
    """Bound the output and the log-sum-exp of a flash-attention kernel."""
    on, N = x.v.on, x.k.value.shape[-2]  # weights are cast to v's dtype
    with np.errstate(all="ignore"):
        # (1) scores in base 2
        t, slope = scores(x)
        t = t.where(x.live, -np.inf)  # (B, H, M, N)
        every, live = with_sinks(x, t)  # (B, H, M, N or N + 1)
        attends = partnered(live)  # (B, H, M, 1)
        # (2) weights
        top = every.max(-1, keepdims=True).where(attends)
        w = np.exp2(every.value - top.value)
        rescales = -(-N // SMALLEST_TILE) - 1
        if x.options.sinks is not None or x.options.window_size is not None:
            rescales += 2  # from the sink to the first tile, and one for a tile at either edge
        log_error = LN2 * (every.error + on.u * (top.value - every.value + 2 * top.error))
        log_error += factor(on.u_function) + rescales * (factor(on.u_function) + factor(on.u))
        log_error = np.where(live, log_error, 0.0)
        # (3) log-sum-exp
        total = np.where(attends, w.sum(-1, keepdims=True), 1.0)
        p = w / total
        most = log_error.max(-1, keepdims=True)
        log_sum_error = np.log((p * np.exp(log_error)).sum(-1, keepdims=True))
        log_sum_error = np.where(attends, np.fmin(log_sum_error, most), 0)
        log_sum_error += factor(gamma(N + 1, on.u))
        reach_m = LN2 * (np.abs(top.value) + top.error)
        reach_l = np.log(total) + log_sum_error + LN2 * top.error
        rounding = on.u_function * (1 + reach_l) + 4 * on.u * (reach_m + reach_l)
        lse = Approx(LN2 * top.value + np.log(total), log_sum_error + rounding, on)
        # (4) output
        p, log_error = p[..., :N], log_error[..., :N]
        error = p * np.expm1(log_error + log_sum_error)
        cast = on.u_storage * (p + error)
        fresh = None if on.confidence is None else cast
        weights = Approx(p, error + cast + 2 * (on.tiny + on.tiny_storage), on, fresh)
        out = output(x, weights.where(x.kept), t)
        steady = out.error
        if fresh is not None:
            uncast = Approx(p, weights.error - fresh, on)
            steady = output(x, uncast.where(x.kept), t).error
    out = out.stored().where(partnered(x.kept))
    return Forward(t, slope, weights.where(x.kept), out, steady, lse.where(attends, -np.inf))


def output(x: Problem, weights: Approx, t: Approx) -> Approx:
    """Return the output before it is stored, from normalised weights (B, H, M, N) of scores t."""
    scale, N = x.dropout.max(), x.k.value.shape[-2]
    out = unfold_groups(matmul(fold_groups(weights, x), x.v), x)
    out = out * Approx(np.asarray(scale), np.asarray(x.q.on.u * scale), x.q.on)
    error = out.error + out.on.u_function * (np.abs(out.value) + out.error) + N * out.on.tiny
    average = 2 * (np.abs(x.v.value) + x.v.error).max(-2, keepdims=True) * scale  # (B, K, 1, D)
    average = average.repeat(x.q.value.shape[1] // average.shape[1], axis=1)
    finite = np.isfinite(np.where(x.live, t.error, 0.0)).all(-1, keepdims=True)  # (B, H, M, 1)
    capped = np.fmin(error, average + np.abs(out.value))
    return Approx(out.value, np.where(finite, capped, np.inf), out.on)


def backward(x: Problem, forward: Forward, dout: Approx, dlse: Approx) -> Backward:
    """Bound the gradients, given those of the output (B, H, M, D) and of the lse (B, H, M, 1)."""
    on, live, kept, slope = x.q.on, x.live, x.kept, forward.slope
    dbias = dsinks = None
    with np.errstate(all="ignore"):
        # (5) weights again
        lse = forward.lse.where(np.isfinite(forward.lse.value))
        p = exp2(forward.t - lse * folded(1.0, on)).where(live)  # (B, H, M, N)
        # (6) gradient of the weights
        dp = (unfold_groups(matmul(fold_groups(dout, x), x.v.mT), x) * dropped(x)).where(kept)
        # (7) its mean under the softmax
        delta, steady, deviation = mean_gradient(forward, dout, dp, dlse)  # (B, H, M, 1)
        # (8) gradient of the scores
        ds = (p * (dp - delta)).where(live)
        lost = ~np.isfinite(delta.error)  # (B, H, M, 1)
        ds.error[np.broadcast_to(lost, ds.error.shape)] = np.inf
        if x.options.bias is not None:
            dbias = unbroadcast(ds, x.options.bias.shape).returned()
        if x.options.sinks is not None:
            share = exp2(sinks(x) - lse * folded(1.0, on)) * delta  # (B, H, M, 1)
            dsinks = (-unbroadcast(share, (share.value.shape[1], 1, 1))).reshape(-1).returned()
        pulling = p
        if slope is not None:
            ds, pulling = (ds * slope).where(live | lost), (p * slope).where(live)
        ds = ds.stored().where(live | lost)
        # (9) gradients of the inputs
        rows = fold_groups(ds, x)  # (B, K, G·M, N)
        dq, dk = unfold_groups(matmul(rows, x.k), x), matmul(rows.mT, fold_groups(x.q, x))
        reach_p = np.abs(pulling.value) + pulling.error
        reach_q, reach_k = (np.abs(a.value) + a.error for a in (fold_groups(x.q, x), x.k))
        pulled = unfold_groups(matmul(fold_groups(pulling, x), x.k), x)
        counted = fold_groups(reach_p * delta.error, x)
        dq = exchanged(
            dq,
            unfold_groups(counted @ reach_k, x),
            delta.error * (np.abs(pulled.value) + pulled.error),
        )
        if on.confidence is not None:
            rest, moved = (fold_groups(reach_p * a, x) for a in (steady, deviation))
            independent = alike(fold_groups(p, x).value, on.u_storage, -2) * moved**2
            dk = exchanged(
                dk,
                counted.mT @ reach_q,
                rest.mT @ reach_q + np.sqrt(independent.mT @ reach_q**2),
            )
        weights = fold_groups((p * dropped(x)).stored().where(kept), x)
        dv = matmul(weights.mT, fold_groups(dout, x))
        dq, dk, dv = (dq * x.scale).returned(), (dk * x.scale).returned(), dv.returned()
    attending, weighing = (partnered(fold_groups(a, x).mT) for a in (live | lost, kept))
    return Backward(
        dq.where(partnered(live | lost)), dk.where(attending), dv.where(weighing), dbias, dsinks
    )


def mean_gradient(
    forward: Forward, dout: Approx, dp: Approx, dlse: Approx
) -> tuple[Approx, Array, Array]:
    """Return Δ (B, H, M, 1), the error that casts do not account for, and what they add to it."""
    on, out = dout.on, forward.out
    delta = (dout * out).sum(-1, keepdims=True) - dlse
    if on.confidence is None or forward.weights.fresh is None or out.fresh is None:
        return delta, delta.error, np.zeros_like(delta.error)
    conspiring = (np.abs(dout.value) * (out.error - forward.steady)).sum(-1, keepdims=True)
    weights, outputs = (
        (alike(cast.value, on.u_storage, -1) * (cast.fresh * reach) ** 2).sum(-1, keepdims=True)
        for cast, reach in (
            (forward.weights, np.abs(dp.value) + dp.error),
            (out, np.abs(dout.value) + dout.error),
        )
        if cast.fresh is not None
    )
    deviation = on.confidence * np.sqrt((weights + outputs) / 3)
    steady = delta.error - conspiring
    return (
        Approx(delta.value, steady + np.fmin(conspiring, deviation), on),
        steady,
        deviation,
    )


def exchanged(product: Approx, counted: Array, better: Array) -> Approx:
    """Replace a part counted in a product's error by a better bound of that part."""
    return Approx(product.value, product.error - counted + np.fmin(counted, better), product.on)


def partnered(pairs: Array) -> Array:
    """Return (..., rows, 1): whether a row of `pairs` has any that is True."""
    return np.asarray(pairs.any(-1, keepdims=True))


def factor(x: float) -> float:
    """Return −log(1 − x): the logarithm of a factor between 1 − x and 1/(1 − x)."""
    return -math.log1p(-x) if x < 1 else math.inf


def dropped(x: Problem) -> Approx:
    """Return the dropout mask times its scale; 1/(1 − p) is rounded."""
    return Approx(x.dropout, x.q.on.u * x.dropout, x.q.on)
