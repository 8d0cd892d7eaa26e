"""The contract of root mean square layer normalisation, with the residual add before it.

The bound follows the kernel line by line, by running error analysis unless stated otherwise.

(1) h = residual + x is stored, and what was stored is normalised: one IEEE sum and one cast, known
    to the last bit.
(2) A sum of squares cancels nothing: C products and C − 1 additions in any order err by γ_C of the
    sum itself, whatever the row, and the root halves that: rstd is known to ½(γ_{C+2} + u_f) + 2u_f
    of itself, where layer norm's bound grows with mean/σ. For a row of zeros rstd is 1/√eps.
(3) y = h·rstd·(w + offset): two roundings, a third for the sum with an offset that is not 0, and
    the cast, the only one. Casting ĥ = h·rstd to the storage dtype before the gain, as Llama models
    do, rounds twice, and exceeds this bound in half precision: in our kernels that is a fault
    (`faults` has it), in foreign functions a different choice, with a bound of its own. In float32
    the two are the same.

Backward: ĥ from the same rstd; dw = Σ dy·ĥ over R rows; g = dy·(w + offset), its mean over C along
ĥ, and dx = (g − ĥ·mean(g·ĥ))·rstd, + dh, all float32. A row of one column has g − ĥ·mean(g·ĥ) =
g·(1 − ĥ²), which cancels but for eps: the bound is then that of the difference. Where ĥ is cast
before the gain, dy·ĥ and g may be too, as autograd keeps products in the dtype of their factors.
The probabilistic bound has √C for C in the sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Subject
from twofold.core.verify.contracts import norms
from twofold.core.verify.rounding import Approx, exact, machine, sqrt


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
    eps: float = 1e-6
    offset: float = 0.0
    seed: int = 0
    into: str = ""  # dtype of the array that backward writes the gain's gradient into
    tile: int | None = None  # entry of the kernel's tile table
    unrounded: bool = False  # foreign functions: whether the sum is normalised unrounded
    rounded: bool = False  # foreign functions: whether ĥ is rounded before the gain


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    x: domains.Array
    weight: domains.Array
    residual: domains.Array | None
    dout: domains.Array
    dh: domains.Array | None


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rows, parameter = norms.drawing(case)
    return Inputs(
        x=rows(case.magnitude),
        weight=parameter(),
        residual=rows(case.magnitude) if case.residual else None,
        dout=rows("unit"),
        dh=rows("unit") if case.stream_gradient else None,
    )


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    parameters = {"weight": given.weight}
    return norms.run(side, side.rms_norm, case, given, parameters, offset=case.offset)


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype)
    x, weight, dout = (exact(a, on) for a in (given.x, given.weight, given.dout))
    # (1) the stream
    h = x
    if given.residual is not None:
        h = exact(norms.stored_sum(given.residual, given.x, case.dtype), on)
    # (2) mean of the squares; (4) ĥ
    normed, rstd = normalised(norms.normalised_stream(case, given, h), case.eps)
    # (3) normalise, scale
    gain = weight if case.offset == 0.0 else weight + case.offset  # a sum with 0 rounds nothing
    cast = domains.between(case, normed)
    out = cast * gain
    # (5) gain
    dweight = domains.between(case, dout * cast).sum(0)
    # (6) the stream
    g = domains.between(case, dout * gain)
    along = (g * normed).sum(-1, keepdims=True) / float(case.columns)
    dx = (g - normed * along) * rstd
    if given.dh is not None:
        dx = dx + exact(given.dh, on)
    outputs = {"out": out, "dx": dx, "dweight": dweight}
    if given.residual is not None:
        outputs["dresidual"] = dx
    return {**domains.returned(case, outputs, "dweight"), "h": h}


def normalised(h: Approx, eps: float) -> tuple[Approx, Approx]:
    """Return ĥ and 1/√(mean(h²) + ε) of rows."""
    rstd = 1.0 / sqrt((h * h).mean(-1, keepdims=True) + eps)
    return h * rstd, rstd


def scale_invariance(subject: Subject, case: Case) -> None:
    """The input times a power of two gives the same bits, where eps is negligible."""
    base = replace(plain(case), dtype="float32", magnitude="large", eps=1e-30)
    given = inputs(base)
    one, four = (subject.compute(base, given._replace(x=c * given.x)) for c in (1.0, 4.0))
    assert np.array_equal(one["out"], four["out"]), "RMSNorm(4x) is not RMSNorm(x)"
    assert np.array_equal(one["dx"], 4 * four["dx"]), "dx of 4x is not a quarter of that of x"


def sign_flip(subject: Subject, case: Case) -> None:
    """Negated rows give negated results and the same dx, bit for bit."""
    base = plain(case)
    given = inputs(base)
    here, there = (subject.compute(base, given._replace(x=sign * given.x)) for sign in (1, -1))
    turned = {name: -x if name in ("out", "h", "dweight") else x for name, x in there.items()}
    claims.same_bits(here, turned, "of −x")


def gradient_sums(subject: Subject, case: Case) -> None:
    """RMSNorm ignores the scale of a row: Σ dx·x = 0 where eps is negligible."""
    base = replace(plain(case), magnitude="unit", eps=1e-12)
    given = inputs(base)
    dx, bound = subject.compute(base, given)["dx"], truth(base, given)
    nothing = (np.zeros(1), np.zeros(1), 0.0)
    gain = given.weight + base.offset
    for x, g, d, e in zip(given.x, given.dout * gain, dx, bound["dx"].error, strict=True):
        if (mean_square := (x**2).mean()) > 0:
            # Σ ĥ² is not C but C·mean_square/(mean_square + eps)
            slack = base.eps * mean_square**-1.5 * np.abs(g * x)
            claims.products("Σ dx·x is not 0", (d, x, e), nothing, slack=slack)


def plain(case: Case) -> Case:
    """Return the case without what precedes the norm."""
    return replace(case, residual=False, stream_gradient=False)


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        **norms.drawn(),
        eps=st.sampled_from([1e-6, 1e-5, 1e-12]),
        offset=st.sampled_from([0.0, 1.0]),
        seed=domains.seeds(),
        into=st.sampled_from(domains.INTO),
    )


CONTRACT = Contract(
    operator="rms_norm",
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
    },
    pinned=(
        *(
            Case(dtype=dtype, rows=37, columns=columns, residual=True, offset=1.0, tile=tile)
            for tile, columns in enumerate((127, 257, 300, 513, 700, 1031))
            for dtype in domains.DTYPES
        ),
        # More rows than programs in backward, so that each program sums several.
        Case(rows=261, columns=3, residual=True, stream_gradient=True, tile=2),
        Case(rows=515, columns=3, residual=True, stream_gradient=True, offset=1.0, tile=1),
        Case("bfloat16", rows=67, residual=True, layout="strided", into="float32"),
        Case(rows=5, columns=33, magnitude="tiny", eps=1e-3),  # eps is most of the root
        Case(rows=5, columns=7, offset=0.37),
        Case("float16", rows=2, columns=4112, residual=True),
        Case(rows=2501, columns=3),
    ),
    usual=tuple(
        Case(dtype=dtype, rows=64, columns=columns, residual=fused)
        for columns in (768, 4096)
        for fused in (False, True)
        for dtype in domains.DTYPES
    ),
    properties={
        "NaN is seen": not_numbers.seen(inputs, run),
        "scale invariance": scale_invariance,
        "sign flip": sign_flip,
        "gradient sums": gradient_sums,
        **norms.properties(inputs, plain, truth),
    },
)
