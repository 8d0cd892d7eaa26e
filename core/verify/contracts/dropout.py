"""The contract of dropout: the mask bit for bit, kept elements within one product's rounding.

A dropped element is 0 and has bound 0, so one wrong bit of a mask breaks the contract. A kept one
is x·s, s = 1/(1 − p) rounded once to float32: |s|·(relative error of s, computed)·|x| for the
constant, u|x·s| for the product (none where s is a power of two), half a unit in the last place for
the cast. There is no sum, so the probabilistic bound is the same. Beyond 65519 a float16 is ∞,
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import domains
from twofold.core.verify.contract import Contract, Subject
from twofold.core.verify.rounding import Approx, exact, machine
from twofold.reference import dropout

BLOCK = 1024  # elements of one program
PROBABILITIES = (0.0, 1e-6, 0.1, 0.3, 0.5, 0.9)


@dataclass(frozen=True)
class Case:
    """Rows × columns, and everything that varies about them."""

    dtype: str = "float32"
    rows: int = 3
    columns: int = 8
    magnitude: str = "unit"
    layout: str = "contiguous"
    dropout_p: float = 0.1
    seed: int = 0


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    x: domains.Array
    dout: domains.Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)
    shape = (case.rows, case.columns)
    magnitudes = (case.magnitude, "unit")
    return Inputs(*(domains.draw(rng, shape, magnitude, case.dtype) for magnitude in magnitudes))


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    x, dout = (domains.place(side, a, case.dtype, case.layout) for a in given or inputs(case))
    out, cache = side.dropout.forward(x, case.dropout_p, case.seed)
    return {"out": out, **side.dropout.backward(dout, cache)._asdict()}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: one product and one cast, or exactly zero."""
    given, on = given or inputs(case), machine(case.dtype)
    keep = dropout.keep_mask(given.x.shape, case.dropout_p, case.seed)

    def dropped(x: domains.Array) -> Approx:
        return (exact(x, on) * dropout.scale(case.dropout_p)).where(keep).returned()

    return {"out": dropped(given.x), "dx": dropped(given.dout)}


def kept(subject: Subject, case: Case) -> domains.Array:
    """Return which elements are kept: those of a tensor of ones that do not become zero."""
    ones = np.ones((case.rows, case.columns))
    return np.asarray(subject.compute(case, Inputs(ones, ones))["out"] != 0)


def same_mask(subject: Subject, case: Case) -> None:
    """The mask is the reference's, bit for bit, whatever the layout."""
    expected = dropout.keep_mask((case.rows, case.columns), case.dropout_p, case.seed)
    assert np.array_equal(kept(subject, case), expected), "the mask is not the reference's"


def nested_masks(subject: Subject, case: Case) -> None:
    """What a larger probability keeps, a smaller one keeps too: they share their draws."""
    more, less = (kept(subject, replace(case, dropout_p=p)) for p in (0.3, 0.6))
    assert (more | ~less).all(), "p = 0.6 keeps what p = 0.3 drops"


def nan_is_seen(subject: Subject, case: Case) -> None:
    """A NaN that is kept stays NaN; one that is dropped becomes 0 in a kernel."""
    keep = dropout.keep_mask((case.rows, case.columns), case.dropout_p, case.seed)
    nothing = np.full(keep.shape, np.nan)
    for name, x in subject.compute(case, Inputs(nothing, nothing)).items():
        assert np.isnan(x[keep]).all(), f"{name} has numbers that were NaN and are kept"
        dropped = subject.name != "triton" or not x[~keep].any()
        assert dropped, f"{name} is not 0 where NaN is dropped"


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        rows=domains.lengths(40),
        columns=domains.lengths(150),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        dropout_p=st.sampled_from(PROBABILITIES),
        seed=domains.seeds(),
    )


CONTRACT = Contract(
    operator="dropout",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "dx": "backward"},
    pinned=(
        *(
            Case(dtype=dtype, rows=1, columns=columns, dropout_p=0.5, seed=2**63 - 1)
            for columns in (BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7)
            for dtype in domains.DTYPES
        ),
        Case(dropout_p=0.1),  # which is rounded up, to 6554/65536
        Case(rows=61, columns=1031, dropout_p=0.999999, seed=18),  # 65535/65536, and some are kept
        Case(rows=129, columns=1031, dropout_p=0.5),  # more than the reference draws at a time
    ),
    usual=tuple(Case(dtype=dtype, rows=64, columns=1024) for dtype in domains.DTYPES),
    properties={
        "same mask": same_mask,
        "nested masks": nested_masks,
        "NaN is seen": nan_is_seen,
    },
)
