"""The contract of layer normalisation, with the residual add and dropout before it.

The bound follows the kernel line by line, by running error analysis unless stated otherwise.

(1) h = residual + dropout(x) is stored, and what was stored is normalised. Without dropout that is
    one IEEE sum and one cast, known to the last bit; with it the product may be fused or not, so h
    is known to half a unit in the last place.
(2) μ = Σh/C, any order of C − 1 additions and a division: E_μ = (Σ E_h + γ_{C−1}·Σ|h|)/C + 2u_f|μ|.
    c = h − μ then errs by E_h + E_μ and a rounding ρ. All of a row's c are moved by the same E_μ:
    Σ(c + ε)² = Σc² + 2ε·Σc + Cε², and Σc is 0, so the part of the variance's error of first order
    in E_μ is taken out again (twice Cε² is left in, as a float64 Σc is not quite 0). Then
    rstd = 1/√(var + eps): where var + eps may be 0 by its bound, nothing is known.
(3) y = c·rstd·w + b, four roundings, and the cast.

Backward: x̂ from the same μ and rstd, rounded once more; dw = Σ dy·x̂ and db = Σ dy over R rows;
g = dy·w, its means over C along 1 and x̂, and dx = (g − ḡ − x̂·mean(g·x̂))·rstd, + dh, all float32.

Where the offset of rows is far above their spread, the bound is as loose as the sum of h is badly
conditioned; a shift-invariant kernel has the property "scale invariance" all the same.
The probabilistic bound has √C for C in the sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Inapplicable, Subject
from twofold.core.verify.contracts import norms
from twofold.core.verify.rounding import Approx, exact, machine, sqrt
from twofold.reference import dropout


@dataclass(frozen=True)
class Case:
    """Rows × columns, and everything that varies about them."""

    dtype: str = "float32"
    rows: int = 3
    columns: int = 8
    magnitude: str = "unit"
    layout: str = "contiguous"
    residual: bool = False
    stream_gradient: bool = False
    dropout_p: float = 0.0
    eps: float = 1e-5
    seed: int = 0
    into: str = ""  # dtype of the arrays that backward writes parameters' gradients into
    tile: int | None = None  # entry of the kernel's tile table
    unrounded: bool = False  # foreign functions: whether the sum is normalised unrounded


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    x: domains.Array
    weight: domains.Array
    bias: domains.Array
    residual: domains.Array | None
    dout: domains.Array
    dh: domains.Array | None


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rows, parameter = norms.drawing(case)
    return Inputs(
        x=rows(case.magnitude),
        weight=parameter(),
        bias=parameter(),
        residual=rows(case.magnitude) if case.residual else None,
        dout=rows("unit"),
        dh=rows("unit") if case.stream_gradient else None,
    )


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    parameters = {"weight": given.weight, "bias": given.bias}
    options = {"dropout_p": case.dropout_p, "seed": case.seed}
    return norms.run(side, side.layer_norm, case, given, parameters, **options)


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype)
    x, weight, bias = (exact(a, on) for a in (given.x, given.weight, given.bias))
    dout, C = exact(given.dout, on), float(case.columns)
    keep = dropout.keep_mask(given.x.shape, case.dropout_p, case.seed)
    # (1) the stream
    h = x
    if case.dropout_p > 0.0:
        h = (h * dropout.scale(case.dropout_p)).where(keep)
        if given.residual is not None:
            h = exact(given.residual, on) + h
        h = h.stored()
    elif given.residual is not None:
        h = exact(norms.stored_sum(given.residual, given.x, case.dtype), on)
    # (2) mean and variance
    xhat, rstd = normalised(norms.normalised_stream(case, given, h), case.eps)
    # (3) normalise, scale, shift
    out = xhat * weight + bias
    # backward (5) gain and shift, of (4) x̂
    dweight, dbias = (dout * xhat).sum(0), dout.sum(0)
    # backward (6) the stream
    g = dout * weight
    along_mean = g.sum(-1, keepdims=True) / C
    along_xhat = (g * xhat).sum(-1, keepdims=True) / C
    total = (g - along_mean - xhat * along_xhat) * rstd
    if given.dh is not None:
        total = total + exact(given.dh, on)
    # backward (7) both branches
    dx = total
    if case.dropout_p > 0.0:
        dx = (total * dropout.scale(case.dropout_p)).where(keep)
    outputs = {"out": out, "dx": dx, "dweight": dweight, "dbias": dbias}
    if given.residual is not None:
        outputs["dresidual"] = total
    return {**domains.returned(case, outputs, "dweight", "dbias"), "h": h}


def normalised(h: Approx, eps: float) -> tuple[Approx, Approx]:
    """Return x̂ and 1/√(σ² + ε) of rows.

    The error of the mean is the same for a whole row, whose Σ (h − μ) is 0: that part of the errors
    of h − μ does not reach σ².
    """
    C = float(h.value.shape[-1])
    mean = h.sum(-1, keepdims=True) / C
    centred = h - mean
    squares = (centred * centred).sum(-1, keepdims=True)
    shared = 2 * mean.error * (np.abs(centred.value).sum(-1, keepdims=True) - C * mean.error)
    squares = replace(squares, error=squares.error - np.maximum(shared, 0.0))
    rstd = 1.0 / sqrt(squares / C + eps)
    return centred * rstd, rstd


def scale_invariance(subject: Subject, case: Case) -> None:
    """The input times a power of two gives the same bits, where eps is negligible."""
    base = replace(plain(case), dtype="float32", magnitude="large", eps=1e-30)
    given = inputs(base)
    if base.columns == 1:
        raise Inapplicable("one column is no more than its mean")
    one, four = (subject.compute(base, given._replace(x=c * given.x))["out"] for c in (1.0, 4.0))
    assert np.array_equal(one, four), "LN(4x) is not LN(x)"


def shift_invariance(subject: Subject, case: Case) -> None:
    """Adding a number to a row changes nothing but the rounding."""
    base = replace(plain(case), magnitude="unit")
    given = inputs(base)
    x = np.round(8 * given.x) / 8  # so that the sum is exact in every dtype
    here, there = (given._replace(x=x + shift) for shift in (0.0, 8.0))
    found, bound = subject.compute(base, there), truth(base, here)["out"]
    claims.unmoved(found, {"out": bound}, truth(base, there), "of a row moved by 8")


def gradient_sums(subject: Subject, case: Case) -> None:
    """LN ignores shift and scale: Σ dx = 0, and Σ dx·x = 0 where eps is negligible."""
    base = replace(plain(case), magnitude="unit", eps=1e-12)
    given = inputs(base)
    dx, bound = subject.compute(base, given)["dx"], truth(base, given)
    nothing = (np.zeros(1), np.zeros(1), 0.0)
    for x, g, d, e in zip(given.x, given.dout * given.weight, dx, bound["dx"].error, strict=True):
        claims.products("Σ dx is not 0", (d, np.ones_like(x), e), nothing)
        centred = x - x.mean()
        if (variance := (centred**2).mean()) > 0:
            # Σ x̂² is not C but C·var/(var + eps)
            slack = base.eps * variance**-1.5 * np.abs(g * centred)
            claims.products("Σ dx·x is not 0", (d, x, e), nothing, slack=slack)


def plain(case: Case) -> Case:
    """Return the case without what precedes the norm."""
    return replace(case, dropout_p=0.0, residual=False, stream_gradient=False)


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        **norms.drawn(),
        dropout_p=st.sampled_from([0.0, 0.1, 0.5]),
        eps=st.sampled_from([1e-5, 1e-12]),
        seed=domains.seeds(),
        into=st.sampled_from(domains.INTO),
    )


CONTRACT = Contract(
    operator="layer_norm",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={
        "out": "forward",
        "h": "forward",
        "dx": "backward",
        "dresidual": "backward",
        "dweight": "backward",
        "dbias": "backward",
    },
    pinned=(
        *(
            Case(dtype=dtype, rows=37, columns=columns, residual=True, dropout_p=0.1, tile=tile)
            for tile, columns in enumerate((127, 257, 300, 513, 700, 1031))
            for dtype in domains.DTYPES
        ),
        # More rows than programs in backward, so that each program sums several.
        Case(rows=261, columns=3, residual=True, stream_gradient=True, dropout_p=0.1, tile=2),
        Case(rows=515, columns=3, residual=True, stream_gradient=True, dropout_p=0.1, tile=1),
        Case("bfloat16", rows=67, residual=True, layout="strided", into="float32"),
        Case(columns=64, magnitude="offset"),  # where E[x²] − E[x]² cancels
        Case("float16", rows=2, columns=4112, residual=True),
        Case(rows=2501, columns=3),
    ),
    usual=tuple(
        Case(dtype=dtype, rows=64, columns=columns, residual=fused, dropout_p=0.1 if fused else 0.0)
        for columns in (768, 4096)
        for fused in (False, True)
        for dtype in domains.DTYPES
    ),
    properties={
        "NaN is seen": not_numbers.seen(inputs, run),
        "scale invariance": scale_invariance,
        "shift invariance": shift_invariance,
        "gradient sums": gradient_sums,
        **norms.properties(inputs, plain, truth),
    },
)
