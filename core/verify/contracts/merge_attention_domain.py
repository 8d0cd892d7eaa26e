"""The domain of merging partial attention, and its bound; `merge_attention` makes the contract.

The bound follows the kernel line by line: running error analysis (`rounding.Approx`) of steps
(1)–(6).

(1) The largest lse, m, is one of the inputs, and a choice: exact. In p_s = exp(lse_s − m) one
    difference of exact numbers is rounded, which moves the exponent by at most u·(m − lse_s), and
    exp adds its own error, so that log p̂_s = lse_s − m ± Φ_s. Nothing in Φ_s grows with |lse_s|,
    only with the distance from the largest, where the weight is e^−(m − lse_s). Were the weights
    exp(lse_s − lse) with lse as stored, each would contain its rounding u·|lse|; the domain has
    lses of 10⁴, to tell the two apart.
    l = Σ p_s takes S − 1 additions: they start from 0, to which the first term is added without a
    rounding, as is a part that is left out, wherever it stands. log l̂ − log l is at most
    log Σ w_s·e^Φ_s and no less than −Σ w_s·Φ_s, w the true weights (the conditioning of
    log-sum-exp: Blanchard, Higham & Higham 2021, "Accurately computing the log-sum-exp and softmax
    functions"): to first order a mean of the Φ_s. |l̂ − l|/l ≤ Σ |p̂_s − p_s|/l says the same.
    lse = m + log l rounds once more.
(2) w_s = p_s·(1/l): a division and a product.
(3) out = Σ w_s·out_s: S products and S − 1 additions (fused or not), the cast. Weights that sum to
    1 keep the sum within the largest out_s; Σ p_s·out_s, divided at the end, may overflow float32
    although all out_s are finite. The domain has outs near the largest, to tell the two apart.
(4) Backward uses the same w and out, in float32, before any cast.
(5) dout_s = w_s·dout: a product and the cast.
(6) dlse_s = w_s·(Σ_d dout·(out_s − out) + dlse): the difference comes before the product, then
    D − 1 additions.

A part left out has weight 0, gradient 0 and bound 0; if all are, out = 0 and lse = −∞ are exact.
The probabilistic bound has √n for n in the sums; nothing is cast on the way into one.

`S` parts, `B` batch, `H` heads, `M` queries, `D` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import domains
from twofold.core.verify.rounding import Approx, constant, exact, exp, log, machine

Array = domains.Array

LAYOUTS = (*domains.LAYOUTS, "heads inside", "parts inside")
MAGNITUDES = (*domains.MAGNITUDES, "largest")
LSE_SCALES = (0.0, 1e-2, 1.0, 10.0, 100.0, 1e4)


@dataclass(frozen=True)
class Case:
    """Lengths, and everything that varies about a call.

    `dtype` is that of out; `float32_parts` says that outs are float32 all the same. `lse_scale` is
    the standard deviation of the lses, `dead` the probability that a part attended nothing.
    Magnitude "largest" has outs up to half of the largest of their dtype, with a sign that parts
    share, and douts so small that gradients do not overflow either. `base_2` has lses to base 2, as
    some functions do: the inputs are natural ones whose values in base 2 are held exactly.
    """

    dtype: str = "float32"
    parts: int = 3
    batch: int = 1
    heads: int = 2
    seqlen_q: int = 3
    head_dim: int = 8
    lse_scale: float = 1.0
    dead: float = 0.0
    magnitude: str = "unit"
    layout: str = "contiguous"
    float32_parts: bool = False
    dlse: bool = False
    base_2: bool = False
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table

    @property
    def parts_dtype(self) -> str:
        """The dtype of outs and their gradient."""
        half = self.dtype in ("float16", "bfloat16")
        return "float32" if half and self.float32_parts else self.dtype

    @property
    def lse_dtype(self) -> str:
        """The dtype of lses and their gradient."""
        return "float64" if self.dtype == "float64" else "float32"


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtypes hold exactly.

    A part that attended nothing has lse −∞, and NaN in outs.
    """

    outs: Array
    lses: Array
    dout: Array
    dlse: Array | None

    @property
    def live(self) -> Array:
        """Parts (S, B, H, M) that attended something."""
        return np.asarray(self.lses > -np.inf)

    @property
    def attends(self) -> Array:
        """Queries (B, H, M) for which any part attended something."""
        return np.asarray(self.live.any(0))

    @property
    def cleaned(self) -> Array:
        """The outs, 0 for parts that attended nothing."""
        return np.where(self.live[..., None], self.outs, 0.0)


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)
    rows = (case.batch, case.heads, case.seqlen_q)
    lses = case.lse_scale * rng.standard_normal((case.parts, *rows))
    lses = domains.representable(lses, case.lse_dtype)
    lses[rng.random(lses.shape) < case.dead] = -np.inf
    lses = lses * np.log(2.0) if case.base_2 else lses
    shape = (case.parts, *rows, case.head_dim)
    if largest := case.magnitude == "largest":
        sign = np.sign(rng.standard_normal(shape[1:]))
        outs = sign * rng.uniform(0.5, 0.99, shape) * machine(case.parts_dtype).huge
        outs = domains.representable(outs, case.parts_dtype)
    else:
        outs = domains.draw(rng, shape, case.magnitude, case.parts_dtype)
    outs[lses == -np.inf] = np.nan
    dout = domains.draw(rng, shape[1:], "tiny" if largest else "unit", case.dtype)
    dlse = domains.draw(rng, rows, "unit", case.lse_dtype) if case.dlse else None
    return Inputs(outs, lses, dout, dlse)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = domains.tile(side.merge_attention, case)
    chosen = {"out_dtype": case.dtype} if case.dtype != case.parts_dtype else {}
    outs = place(side, given.outs, case.parts_dtype, case.layout, True)
    lses = place(side, given.lses, case.lse_dtype, case.layout, True)
    dout = place(side, given.dout, case.dtype, case.layout, False)
    dlse = None
    if given.dlse is not None:
        dlse = place(side, given.dlse, case.lse_dtype, case.layout, False)
    out, cache = side.merge_attention.forward(outs, lses, **chosen, **how)
    gradients = side.merge_attention.backward(dout, cache, dlse, **how)
    return {"out": out, "lse": cache.lse, **gradients._asdict()}


def place(side: Side, x: Array, dtype: str, layout: str, has_parts: bool) -> Any:
    """Return ([S,] B, H, M[, D]) on a side, in a layout.

    "heads inside" has the heads of a query side by side in memory, "parts inside" its parts.
    """
    if layout == "heads inside":
        axes = (1 + has_parts, 2 + has_parts)
    elif layout == "parts inside":
        axes = (0, 3) if has_parts else (0, 0)
    else:
        return domains.place(side, x, dtype, layout)
    return side.asarray(np.ascontiguousarray(x.swapaxes(*axes)), dtype).swapaxes(*axes)


class Merged(NamedTuple):
    """Parts, those left out being 0, and what forward makes of them before anything is cast."""

    outs: Approx  # (S, B, H, M, D)
    w: Approx  # (S, B, H, M)
    out: Approx
    lse: Approx


def merge(outs: Approx, lses: Approx) -> Merged:
    """Return steps (1) to (3) of parts that may be known only up to an error."""
    live = np.asarray(lses.value > -np.inf)
    attends = np.asarray(live.any(0))  # (B, H, M)
    # (1) log-sum-exp
    largest = np.where(live, lses.value, -np.inf).max(0)
    top = Approx(largest, np.where(live, lses.error, 0.0).max(0), lses.on).where(attends)
    p = exp((lses - top).where(live)).where(live)
    total = p.sum(0).where(attends, 1.0)
    lse = (top + log(total)).where(attends, -np.inf)
    # (2) weights
    w = p * (1.0 / total)
    # (3) output
    outs = outs.where(live[..., None])
    return Merged(outs, w, (column(w) * outs).sum(0), lse)


def gradients(
    merged: Merged, dout: Approx, dlse: Approx | None, base_2: bool = False
) -> tuple[Approx, Approx]:
    """Return steps (5) and (6): douts and dlses, before anything is cast."""
    # (5) gradients of the outputs
    douts = column(merged.w) * dout
    # (6) gradients of the log-sum-exps
    along = (dout * (merged.outs - merged.out)).sum(-1)  # (S, B, H, M)
    along = along * constant(np.log(2.0), along.on) if base_2 else along
    return douts, merged.w * (along if dlse is None else along + dlse)


def column(x: Approx) -> Approx:
    """Return `x` with a last axis of length 1 added."""
    return x.moved(lambda a: a[..., None])


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.lse_dtype)
    merged = merge(exact(given.cleaned, on), exact(given.lses, on))
    dlse = None if given.dlse is None else exact(given.dlse, on)
    douts, dlses = gradients(merged, exact(given.dout, on), dlse, case.base_2)
    lse = merged.lse.where(given.attends)
    lse = lse * constant(1.0 / np.log(2.0), on) if case.base_2 else lse
    return {
        "out": merged.out.returned(case.dtype),
        "lse": lse.returned(case.lse_dtype).where(given.attends, -np.inf),
        "douts": douts.returned(case.parts_dtype),
        "dlses": dlses.returned(case.lse_dtype),
    }


def small(case: Case) -> Case:
    """Return the case cut down to a size at which properties cost little."""
    return replace(
        case,
        parts=min(case.parts, 7),
        batch=min(case.batch, 2),
        heads=min(case.heads, 2),
        seqlen_q=min(case.seqlen_q, 9),
        head_dim=min(case.head_dim, 17),
    )


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        parts=domains.lengths(19),
        batch=st.integers(1, 2),
        heads=st.integers(1, 2),
        seqlen_q=domains.lengths(17),
        head_dim=st.one_of(domains.lengths(40), domains.lengths(256)),
        lse_scale=st.sampled_from(LSE_SCALES),
        dead=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
        magnitude=st.sampled_from(MAGNITUDES),
        layout=st.sampled_from(LAYOUTS),
        float32_parts=st.booleans(),
        dlse=st.booleans(),
        seed=domains.seeds(),
    )
