"""The contract of softmax.

(1) The maximum rounds nothing, x − m once. (2) Exponentials err by u_function and by the error of
their argument; their sum is bounded as in cross-entropy (`running_sum`), for rows in any blocks.
(3) Each one's share of the sum: a division, a product, and the cast. An element that is −∞ has a
share of exactly 0; in a row that is −∞ throughout, all shares are 0.

Backward takes y as stored, with an error of half a unit in the last place. (4) δ = Σ dout·y: C
products and C − 1 sums. (5) dx = (dout − δ)·y, two roundings and the cast. In the probabilistic
bound a sum counts √C instead of C.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains
from twofold.core.verify.contract import Contract, Inapplicable, Subject
from twofold.core.verify.contracts.softmax_cross_entropy import running_sum
from twofold.core.verify.rounding import Approx, exact, exp, machine

Array = domains.Array

MASKED = 0.2  # fraction of the elements, and of the rows, that are −∞ where some are
FRONT = 4096  # columns of the blocks in which long rows are taken
LONG = 6  # entry of the kernel's tile table that takes long rows


@dataclass(frozen=True)
class Case:
    """Rows × columns, and everything that varies about them."""

    dtype: str = "float32"
    rows: int = 3
    columns: int = 8
    masked: bool = False  # some elements are −∞, and some whole rows
    magnitude: str = "unit"
    shift: float = 0.0  # added to every element
    gradient: str = "unit"  # magnitude of dout
    layout: str = "contiguous"
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    x: Array
    dout: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)
    R, C = case.rows, case.columns
    # The rows of "near-duplicate" are alike: here the columns must be.
    x = domains.draw(rng, (C, R), case.magnitude, case.dtype).T.copy()
    x = domains.representable(x + case.shift, case.dtype)
    dout = domains.draw(rng, (R, C), case.gradient, case.dtype)
    if case.masked:
        x[rng.random((R, C)) < MASKED] = -np.inf
        x[rng.random(R) < MASKED] = -np.inf
    return Inputs(x, dout)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    x, dout = (domains.place(side, a, case.dtype, case.layout) for a in given or inputs(case))
    how = domains.tile(side.softmax, case)
    out, cache = side.softmax.forward(x, **how)
    return {"out": out, **side.softmax.backward(dout, cache, **how)._asdict()}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype)
    seen = given.x > -np.inf
    live = seen.any(axis=-1, keepdims=True)
    x = np.where(live, given.x, 0.0)
    # (1) maximum
    top = x.max(axis=-1, keepdims=True)
    # (2) exponentials, and their sum
    shifted = exact(np.where(seen, x, top), on) - exact(top, on)
    total = running_sum(shifted, seen | ~live, x)
    # (3) shares
    y = (exp(shifted) * (1.0 / total)).where(seen)
    # backward (4) what they have in common
    dout, stored = exact(given.dout, on), y.stored()
    delta = (dout * stored).sum(-1, keepdims=True)
    # backward (5) gradient
    return {"out": y.returned(), "dx": ((dout - delta) * stored).returned()}


def rows_apart(subject: Subject, case: Case) -> None:
    """A row gives the same bits alone as among others."""
    base = replace(case, layout="contiguous")  # NumPy sums others otherwise
    given = inputs(base)
    last = Inputs(*(a[-1:] for a in given))
    together = {name: a[-1:] for name, a in subject.compute(base, given).items()}
    claims.same_bits(together, subject.compute(replace(base, rows=1), last), "alone")


def leading_axes(subject: Subject, case: Case) -> None:
    """However many axes the rows are spread over, the bits are the same."""
    small = replace(case, rows=6, columns=min(case.columns, 70), layout="contiguous")
    given, shapes = inputs(small), ((6, small.columns), (2, 1, 3, small.columns))

    def spread(shape: tuple[int, ...]) -> Inputs:
        return Inputs(*(a.reshape(shape) for a in given))

    claims.leading_axes(subject, small, spread, shapes, truth(small, given))


def shares_add_up(subject: Subject, case: Case) -> None:
    """The shares of a row add up to 1, or to 0 where all of it is −∞, and its gradients to 0."""
    given = inputs(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    for name, what in (("out", "Σ out is not 1"), ("dx", "Σ dx is not 0")):
        bound = bounds[name]
        for a, value, error in zip(found[name], bound.value, bound.error, strict=True):
            ones, total = np.ones_like(error), float(name == "out" and value.any())
            truly = (np.full(1, total), np.ones(1), 0.0)
            claims.products(what, (a, ones, error), truly, slack=abs(value.sum() - total))


def shift_invariance(subject: Subject, case: Case) -> None:
    """Adding a number to a row changes nothing but the rounding."""
    base = replace(case, magnitude="unit")
    given = inputs(base)
    here, there = (given._replace(x=np.round(8 * given.x) / 8 + shift) for shift in (0.0, 8.0))
    found = subject.compute(base, there)
    claims.unmoved(found, truth(base, here), truth(base, there), "of rows moved by 8")


def not_a_number(subject: Subject, case: Case) -> None:
    """A NaN, or ∞, makes its row NaN, and disturbs no other row."""
    given, expected = inputs(case), subject.compute(case, inputs(case))
    bad = np.arange(case.rows) % 3 == case.seed % 3
    x = given.x.copy()
    x[bad, case.seed % case.columns] = np.inf if case.seed % 2 else np.nan
    for name, a in subject.compute(case, given._replace(x=x)).items():
        assert np.isnan(a[bad]).all(), f"{name} of a row with NaN or ∞ has numbers"
        same = np.array_equal(a[~bad], expected[name][~bad])
        assert same, f"a row with NaN or ∞ disturbs {name} of other rows"
    if subject.name == "triton" and case.tile != LONG:
        not_a_number(subject, replace(case, tile=LONG))


def nothing_in_front(subject: Subject, case: Case) -> None:
    """If −∞ fills the first blocks of a row, the other elements are as without it."""
    case = replace(case, magnitude="unit", tile=None)
    given, wider = inputs(case), replace(case, columns=case.columns + 5 * FRONT)
    front = np.full((case.rows, 5 * FRONT), -np.inf)
    wide = Inputs(
        np.concatenate((front, given.x), axis=1),
        np.concatenate((np.ones_like(front), given.dout), axis=1),
    )
    found = subject.compute(wider, wide)
    for name, bound in truth(wider, wide).items():
        claims.within(name, found[name], bound, "behind −∞")


def gradient_of_what_is_stored(subject: Subject, case: Case) -> None:
    """The gradient is that of the shares as stored: their own rounding adds no error to it.

    Checked also on a long row in 16 bits, whose Σ dout·y is far larger than the gradient.
    """
    if subject.name != "triton":
        raise Inapplicable("it may have kept other shares than it returned")
    dtype = "float16" if case.dtype == "float32" else case.dtype
    long = Case(dtype, 1, 2 * FRONT + 1, magnitude="outliers", gradient="offset", tile=LONG)
    for one in (case, long):
        given = inputs(one)
        found, on = subject.compute(one, given), machine(one.dtype)
        y, dout = exact(found["out"].astype(np.float64), on), exact(given.dout, on)
        dx = (dout - (dout * y).sum(-1, keepdims=True)) * y
        claims.within("dx", found["dx"], dx.returned(), "of the stored shares")


def small(case: Case) -> Case:
    """Return the case with few rows, which some properties make long."""
    return replace(case, rows=min(case.rows, 7))


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        rows=domains.lengths(70),
        columns=domains.lengths(300),
        masked=st.booleans(),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        seed=domains.seeds(),
        tile=st.none(),
    )


CONTRACT = Contract(
    operator="softmax",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "dx": "backward"},
    pinned=(
        *(
            Case(dtype=dtype, rows=rows, columns=columns, masked=True, tile=tile, seed=tile)
            for tile, (rows, columns) in enumerate(
                ((67, 31), (19, 127), (7, 257), (5, 1031), (3, 4099), (2, 8193), (3, 8193))
            )
            for dtype in domains.DTYPES
        ),
        *(Case(dtype=dtype, rows=2, columns=16_411) for dtype in domains.DTYPES),  # is long
        Case(columns=1, rows=70, masked=True),
        Case(columns=31, rows=2501, tile=0),
        Case(columns=5, tile=LONG, shift=-200.0),  # e^−x of which would overflow, too
        Case(columns=5, tile=LONG),  # so short that the bound sees each element of the sum
        Case(columns=4099, tile=LONG, magnitude="large"),  # of which e^x would overflow
        Case(rows=2, columns=4099, tile=LONG, magnitude="outliers"),  # and e^(x − a smaller one)
    ),
    usual=tuple(
        Case(dtype=dtype, rows=64, columns=columns)
        for columns in (32, 128, 512, 1024, 4096, 16384, 32768)
        for dtype in domains.DTYPES
    ),
    properties={
        "rows apart": rows_apart,
        "leading axes": leading_axes,
        "shares add up": shares_add_up,
        "shift invariance": shift_invariance,
        "not a number": not_a_number,
        "gradient of what is stored": gradient_of_what_is_stored,
        "nothing in front": nothing_in_front,
    },
    small=small,
)
