r"""The contract of the activations, and the two bounds that `linear` takes from it.

The kernel's formulas in running error analysis give the roundings of f and f′ at a number z that
the kernel holds exactly: for GELU z·½(1 + erf(z/√2)), where 1 + erf cancels for z < 0 and the error
is absolute, of the size of u_function·|z|; for its tanh form z/(1 + e⁻²ᵃ), relative throughout,
e⁻²ᵃ having a relative error of 2u|2a| from its argument. z is clamped before e⁻²ᵃ can overflow.
tanh is `rounding.tanh`, its derivative 4e⁻²|ᶻ|/(1 + e⁻²|ᶻ|)², relative throughout. SiLU's σ is 1 or
e⁻|ᶻ| over 1 + e⁻|ᶻ|, relative too, as is σ′; where σ + z·σ′ passes 0 it errs absolutely. The common
form σ·(1 + z·(1 − σ)) rounds a σ near 1 and multiplies what is left by z: in float32 that exceeds
this bound by a few hundredths where z is large; it is less exact, and a fault by this contract.

Where z itself carries an error e (of the bias's sum, or in `linear`), f moves by at most

    |f(ẑ) − f(z)| ≤ min(|f′(z)|·e + ½·max|f″|·e²,  max|f′|·e),

f′ by the same with one more prime, and their own rounding grows by at most `GROWTH` roundings for
each unit that z moves. The largest slopes are in `STEEPEST`; where all of z ± e lies beyond ±FLAT,
the largest slope in reach is that at the end nearest to 0. (Formulas on a z with an error would
bound f too, but forget that z and Φ(z) move together, and overflow where e⁻²ᵃ does.)

ReLU rounds nothing. It is monotone, so f(z ± e) says how far it moves; its derivative is unknown
where the sign of z is.

erf is libdevice's on NVIDIA (2 ulp, CUDA C++ Programming Guide, "Mathematical Functions"), ocml's
on AMD (4 ulp, HIP math API), and one rounding of libm's in the interpreter; 4 ulp are 2⁻²¹.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains
from twofold.core.verify.contract import Contract, Inapplicable, Subject
from twofold.core.verify.rounding import Approx, exact, exp, machine, tanh
from twofold.reference.activation import CUBIC, KINDS, LINEAR, SATURATED

Array = domains.Array

INVERSE_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
# The largest |f′|, |f″| and |f‴|, rounded up.
STEEPEST = {
    "gelu": (1.12891, 0.79789, 0.77878),
    "gelu_tanh": (1.12900, 0.79789, 0.77670),
    "tanh": (1.0, 0.76981, 2.0),
    "silu": (1.09984, 0.5, 0.30819),
}
GROWTH = 16  # the tests measure it
FLAT = 3.5  # beyond ±FLAT, |f′| and |f″| fall steadily, or f′ falls to 1; the tests check
ERF_CURVATURE = math.sqrt(8 / (math.pi * math.e))  # max|erf″|, where x² = ½


@dataclass(frozen=True)
class Case:
    """Rows × columns, and everything that varies about them."""

    dtype: str = "float32"
    rows: int = 3
    columns: int = 8
    kind: str = "gelu"
    bias: bool = False
    magnitude: str = "unit"
    layout: str = "contiguous"
    seed: int = 0
    split: int | None = None  # into how many shares of rows the kernel splits its sums


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    x: Array
    dout: Array
    bias: Array | None


def inputs(case: Case) -> Inputs:
    """Make a case's arrays; three times the unit normal, so that the tails are seen."""
    rng = np.random.default_rng(case.seed)
    x = domains.values(rng, (case.rows, case.columns), case.magnitude, case.dtype)
    x *= 1.0 if case.magnitude == "huge" else 3.0  # huge ones times 3 would overflow float16
    dout = domains.values(rng, x.shape, "unit")
    bias = domains.draw(rng, (case.columns,), "unit", case.dtype) if case.bias else None
    x, dout = (domains.representable(a, case.dtype) for a in (x, dout))
    return Inputs(x, dout, bias)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)

    def placed(a: Array) -> Any:
        return domains.place(side, a, case.dtype, case.layout)

    bias = None if given.bias is None else placed(given.bias[None])[0]
    how = {} if case.split is None else {"split": case.split}
    out, cache = side.activation.forward(placed(given.x), case.kind, bias)
    return {"out": out, **side.activation.backward(placed(given.dout), cache, **how)._asdict()}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given, on = given or inputs(case), machine(case.dtype)
    # (1) bias
    z = exact(given.x, on)
    if given.bias is not None:
        z = z + exact(given.bias, on)
    # (2) activation
    out = activate(z, case.kind)
    # backward (2) activation, (1) bias
    dx = exact(given.dout, on) * activate_grad(z, case.kind)
    found = {"out": out, "dx": dx}
    if given.bias is not None:
        found["dbias"] = dx.sum(0)
    return {name: a.returned() for name, a in found.items()}


def activate(z: Approx, kind: str) -> Approx:
    """Return f(z)."""
    if kind == "relu":
        low, value, high = (
            np.maximum(x, 0.0) for x in (z.value - z.error, z.value, z.value + z.error)
        )
        return Approx(value, np.maximum(high - value, value - low), z.on)
    return _moved(_formula(exact(z.value, z.on), kind), z, 0, kind)


def activate_grad(z: Approx, kind: str) -> Approx:
    """Return f′(z)."""
    if kind == "relu":
        undecided = (z.error > 0) & (np.abs(z.value) <= z.error)
        return Approx(np.where(z.value > 0, 1.0, 0.0), np.where(undecided, 1.0, 0.0), z.on)
    return _moved(_formula_grad(exact(z.value, z.on), kind), z, 1, kind)


def derivatives(z: Array, kind: str) -> tuple[Array, Array]:
    """Return f′(z) and f″(z) of a smooth activation."""
    if kind == "gelu":
        density = np.exp(-0.5 * z * z) * INVERSE_SQRT_2PI
        return 0.5 * (1 + _erf(z * math.sqrt(0.5))) + z * density, density * (2 - z * z)
    if kind == "tanh":
        decay = np.exp(-2 * np.abs(z))
        slope = 4 * decay / (1 + decay) ** 2
        return slope, -2 * np.tanh(z) * slope
    # f = z·g, g = 1/(1 + e⁻ˢ), s = z or 2a: g′ = s′·g(1 − g), g″ = (s″ + s′²(1 − 2g))·g(1 − g)
    s: Array = z
    s1: Array | float = 1.0
    s2: Array | float = 0.0
    if kind == "gelu_tanh":
        z = np.clip(z, -SATURATED, SATURATED)
        s, s1, s2 = 2 * LINEAR * z + 2 * CUBIC * z**3, 2 * LINEAR + 6 * CUBIC * z**2, 12 * CUBIC * z
    decay = np.exp(-np.abs(s))
    g, rest = (np.where(side, 1.0, decay) / (1 + decay) for side in (s >= 0, s < 0))
    g1 = s1 * g * rest
    return g + z * g1, 2 * g1 + z * (s2 + s1 * s1 * (rest - g)) * g * rest


def _moved(at: Approx, z: Approx, order: int, kind: str) -> Approx:
    """Add the effect of z's error to f or f′ (`order` 0 or 1) evaluated at z."""
    e, slope = z.error, np.abs(derivatives(z.value, kind)[order])
    steepest, curvature = STEEPEST[kind][order : order + 2]
    moved = np.fmin(slope * e + 0.5 * curvature * e * e, steepest * e)
    nearest = np.maximum(np.abs(z.value) - e, 0.0)
    largest = np.abs(derivatives(np.copysign(nearest, z.value), kind)[order])
    moved = np.where(nearest >= FLAT, np.fmin(moved, largest * e), moved)
    return Approx(at.value, at.error + moved + GROWTH * at.on.u * e, at.on)


def _formula(z: Approx, kind: str) -> Approx:
    """Run the kernel's `activate` at an exact z."""
    if kind == "tanh":
        return tanh(z)
    if kind == "silu":
        return z * _sigmoid(z)[0]
    if kind == "gelu":
        return z * _normal_cdf(z)
    above = exact(np.maximum(z.value, -SATURATED), z.on)
    return _gone(above / (1.0 + _tanh_decay(_clamped(z))), z)


def _formula_grad(z: Approx, kind: str) -> Approx:
    """Run the kernel's `activate_grad` at an exact z."""
    if kind == "gelu":
        return _normal_cdf(z) + z * (exp(-0.5 * z * z) * INVERSE_SQRT_2PI)
    if kind == "tanh":
        decay = exp(-2.0 * exact(np.abs(z.value), z.on))
        gate = 1.0 / (1.0 + decay)
        return 4.0 * decay * gate * gate
    if kind == "silu":
        share, density = _sigmoid(z)
        return share + z * density
    near = _clamped(z)
    decay = _tanh_decay(near)
    gate = 1.0 / (1.0 + decay)
    slope = gate * (1.0 + near * (2 * LINEAR + 6 * CUBIC * near * near) * gate * decay)
    return _gone(slope, z)


def _normal_cdf(z: Approx) -> Approx:
    x = z * math.sqrt(0.5)
    erf = x.function(_erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x), ERF_CURVATURE)
    # `function` adds 2 ulp for its own rounding; erf's 4 need as much again
    erf = Approx(erf.value, erf.error + z.on.u_function * (np.abs(erf.value) + erf.error), z.on)
    return 0.5 * (1.0 + erf)


def _sigmoid(z: Approx) -> tuple[Approx, Approx]:
    decay = exp(-exact(np.abs(z.value), z.on))
    near = 1.0 / (1.0 + decay)
    # 1 is given the error of e⁻|ᶻ|: a bound that jumped at 0 would grow without limit there
    top = Approx(np.where(z.value < 0, decay.value, 1.0), decay.error, z.on)
    return top * near, near * (decay * near)


def _tanh_decay(z: Approx) -> Approx:
    return exp(-z * (2 * LINEAR + 2 * CUBIC * z * z))


def _clamped(z: Approx) -> Approx:
    return exact(np.clip(z.value, -SATURATED, SATURATED), z.on)


def _gone(clamped: Approx, z: Approx) -> Approx:
    """Replace values beyond the limit by 0, off by at most the larger value at the limit."""
    value, beyond = clamped.value, z.value < -SATURATED
    error = clamped.error + np.where(beyond, np.abs(value), 0.0)
    return Approx(np.where(beyond, 0.0, value), error, z.on)


def _erf(x: Array) -> Array:
    """Return erf as libm computes it, which neither side uses."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def odd_part(subject: Subject, case: Case) -> None:
    """f(x) − f(−x) is x where gates at x and −x add up to 1; f(x) + f(−x) is 0 for tanh."""
    case = replace(case, bias=False)
    given, x = inputs(case), inputs(case).x
    here, there = (subject.compute(case, given._replace(x=a))["out"] for a in (x, -x))
    on = machine(case.dtype)
    with np.errstate(all="ignore"):
        bound = sum(activate(exact(a, on), case.kind).stored().error for a in (x, -x))
        here, there = (out.astype(np.float64) for out in (here, there))
        gap = np.abs(here + there) if case.kind == "tanh" else np.abs(here - there - x)
    assert (~(gap > bound)).all(), "f(x) and f(−x) do not belong together"


def nan_stays(subject: Subject, case: Case) -> None:
    """A NaN gives NaN, and no other element becomes NaN."""
    given, x = inputs(case), inputs(case).x.copy()
    x[0, 0] = np.nan
    out = subject.compute(case, given._replace(x=x))["out"]
    assert np.array_equal(np.isnan(out), np.isnan(x)), "NaN is not where it belongs"


def bias_is_in_every_row(subject: Subject, case: Case) -> None:
    """The bias's gradient has the same sum as the gradient of x, to which the bias is added."""
    case = replace(case, bias=True)
    given = inputs(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    claims.products(
        "Σ dbias is not Σ dx",
        *((found[n], np.ones_like(bounds[n].value), bounds[n].error) for n in ("dbias", "dx")),
    )


def bias_may_stand_elsewhere(subject: Subject, case: Case) -> None:
    """Where x is a single row, x and the bias may change places."""
    case = replace(case, rows=1, bias=True)
    given = inputs(case)
    assert given.bias is not None
    if case.magnitude == "huge":
        raise Inapplicable("what is added is lost")
    swapped = given._replace(x=given.bias[None], bias=given.x[0])
    one, other = (subject.compute(case, a) for a in (given, swapped))
    claims.same_bits(one, other, "with x for the bias")


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        rows=domains.lengths(40),
        columns=domains.lengths(70),
        kind=st.sampled_from(KINDS),
        bias=st.booleans(),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        seed=domains.seeds(),
        split=st.none(),
    )


CONTRACT = Contract(
    operator="activation",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "dx": "backward", "dbias": "backward"},
    pinned=(
        *(
            Case(dtype=dtype, rows=rows, columns=1, kind=kind)
            for rows in (1023, 1025)  # a block is 1024
            for kind in KINDS
            for dtype in domains.DTYPES
        ),
        *(Case(kind=kind, magnitude="zeros") for kind in KINDS),  # the kink of ReLU
        *(Case(kind=kind, magnitude="large") for kind in KINDS),  # e⁻ˣ is infinite
        *(
            Case(dtype=dtype, rows=rows, columns=columns, kind=kind, bias=True)
            for (rows, columns), kind in zip(
                ((15, 127), (17, 129), (33, 1), (1, 257), (31, 65)), KINDS, strict=True
            )  # a tile is 16 × 128
            for dtype in domains.DTYPES
        ),
        # Shares of several tiles, and more shares than are added at a time.
        *(Case(rows=67, columns=130, bias=True, split=2, kind=kind) for kind in KINDS),
        Case(rows=531, columns=3, bias=True, layout="strided"),
    ),
    usual=tuple(
        Case(dtype=dtype, rows=64, columns=1024, kind=kind, bias=bias)
        for kind in KINDS
        for bias in (False, True)
        for dtype in domains.DTYPES
    ),
    properties={
        "odd part": odd_part,
        "NaN stays": nan_stays,
        "bias in every row": bias_is_in_every_row,
        "bias elsewhere": bias_may_stand_elsewhere,
    },
)
