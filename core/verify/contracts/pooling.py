"""The contract of pooling: a choice is exact, a mean a sum and a division.

"first" and "max" copy bits: bound 0. A mean of n is Σx, n − 1 additions in any order, γ_{n−1}·Σ|x|,
and one division, u_function; then the cast, half a unit in the last place. Backward multiplies dout
by 1/n, a division and a product, adds the maximum's dout where it was taken, one rounding, and
casts. A maximum's gradient alone is a copy. The probabilistic bound has √n for n in the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains
from twofold.core.verify.contract import Contract, Inapplicable, Subject
from twofold.core.verify.rounding import Approx, concatenate, exact, machine, stack
from twofold.reference.pooling import KINDS

Array = domains.Array

FAR = 128  # positions, as many as a tile has
LEAST = (-np.inf, 0)  # the maximum of a feature that is −∞ everywhere, and its position


@dataclass(frozen=True)
class Case:
    """Batch × length × features; `full` has no padding."""

    dtype: str = "float32"
    batch: int = 2
    length: int = 5
    features: int = 8
    kind: str = "mean_max"
    full: bool = False
    lengths_dtype: str = "int64"
    magnitude: str = "unit"
    layout: str = "contiguous"
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """Lengths, and float64 arrays that the case's dtype holds exactly."""

    x: Array
    lengths: Array
    dout: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)
    lengths = rng.integers(1, case.length + 1, case.batch)
    if case.full:
        lengths[:] = case.length
    width = case.features * (2 if case.kind == "mean_max" else 1)
    x, dout = (
        domains.draw(rng, shape, magnitude, case.dtype)
        for shape, magnitude in (
            ((case.batch, case.length, case.features), case.magnitude),
            ((case.batch, width), "unit"),
        )
    )
    return Inputs(x, lengths, dout)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = domains.tile(side.pooling, case)
    x = domains.place(side, given.x, case.dtype, case.layout)
    dout = domains.place(side, given.dout, case.dtype, case.layout)
    lengths = domains.beside(side, given.lengths, case, case.lengths_dtype)
    out, cache = side.pooling.forward(x, lengths, case.kind, **how)
    return {"out": out, **side.pooling.backward(dout, cache, **how)._asdict()}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds, one sequence after the other."""
    given, on = given or inputs(case), machine(case.dtype)
    rows = [
        sequence(case, exact(x[:n], on), exact(dout, on))
        for x, n, dout in zip(given.x, given.lengths, given.dout, strict=True)
    ]
    return {name: stack([row[i] for row in rows]) for i, name in enumerate(("out", "dx"))}


def sequence(case: Case, x: Approx, dout: Approx) -> tuple[Approx, Approx]:
    """Return out and dx of one sequence x (n, D) without its padding."""
    on, (n, D) = x.on, x.value.shape
    parts, dx = [], exact(np.zeros((n, D)), on)
    if case.kind == "first":
        dx.value[0] = dout.value
        parts.append(x[0])
    if "mean" in case.kind:
        parts.append((x.sum(0) / exact(float(n), on)).returned())
        share = 1.0 / exact(float(n), on)
        dx = (dout[:D] * share).moved(lambda a: np.broadcast_to(a, (n, D)))
    if "max" in case.kind:
        parts.append(x.max(0))
        largest = np.zeros((n, D))
        largest[x.value.argmax(0), np.arange(D)] = dout.value[-D:]
        dx = dx + largest if "mean" in case.kind else exact(largest, on)
    if "mean" in case.kind:
        dx = dx.returned()
    padding = [(0, case.length - n), (0, 0)]
    return concatenate(parts), dx.moved(lambda a: np.pad(a, padding))


def padding_does_not_count(subject: Subject, case: Case) -> None:
    """Whatever the padding holds, even NaN, the bits are the same."""
    given = inputs(case)
    live = (np.arange(case.length) < given.lengths[:, None])[..., None]
    first, second = (
        subject.compute(case, given._replace(x=np.where(live, given.x, padding)))
        for padding in (0.0, np.nan)
    )
    claims.same_bits(first, second, "with the padding")


def nan_is_seen(subject: Subject, case: Case) -> None:
    """A NaN outside the padding makes its feature's mean and maximum NaN, and no others."""
    given = inputs(case)
    x, rng = given.x.copy(), np.random.default_rng(case.seed + 1)
    b, d = rng.integers(0, case.batch), rng.integers(0, case.features)
    x[b, 0 if case.kind == "first" else rng.integers(0, given.lengths[b]), d] = np.nan
    out = subject.compute(case, given._replace(x=x))["out"]
    expected = np.zeros(out.shape, bool)
    expected[b, d :: case.features] = True
    assert np.array_equal(np.isnan(out), expected), "NaN is not where it belongs"


def first_takes_the_gradient(subject: Subject, case: Case) -> None:
    """The gradient of a maximum goes to the first of equals: also of NaNs, of ∞, of all −∞.

    Among them are some that a kernel's next tile has.
    """
    if "max" not in case.kind:
        raise Inapplicable("there is no maximum")
    case, places = replace(case, kind="max", full=True, length=case.length + FAR), case.length
    given, rng = inputs(case), np.random.default_rng(case.seed + 2)
    b, d = rng.integers(0, case.batch), rng.integers(0, case.features)
    for largest, first in ((np.nan, rng.integers(places)), (np.inf, rng.integers(places)), LEAST):
        x = given.x.copy()
        x[b, first:, d] = largest
        found = subject.compute(case, given._replace(x=x))
        out, dx = found["out"][b, d], found["dx"][b, :, d]
        assert np.array_equal(out, largest, equal_nan=True), f"{largest} is not its own maximum"
        expected = np.arange(case.length) == first
        assert np.array_equal(dx != 0, expected), f"the gradient is not at position {first}"


def length_out_of_range(subject: Subject, case: Case) -> None:
    """A length below 1 or above L makes its own sequence NaN, and changes no other.

    It is the last one's, behind which there is nothing to read.
    """
    if subject.name == "reference":
        raise Inapplicable("the reference refuses it")
    given = inputs(case)
    lengths = given.lengths.copy()
    lengths[-1] = 0 if case.seed % 2 else case.length + 1
    before = subject.compute(case, given)
    after = subject.compute(case, given._replace(lengths=lengths))
    for name in ("out", "dx"):
        first, second = before[name], after[name]
        assert np.isnan(second[-1]).all(), f"{name} of length {lengths[-1]} has numbers"
        assert np.array_equal(first[:-1], second[:-1]), f"{name} of other sequences changes"


def adjoint(subject: Subject, case: Case) -> None:
    """First and mean are linear, and so is the maximum along x: ⟨out, dout⟩ = ⟨x, dx⟩."""
    given = inputs(case)
    found, bound = subject.compute(case, given), truth(case, given)
    claims.adjoint(found, bound, given.dout, x=("dx", given.x))


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        batch=st.integers(1, 4),
        length=domains.lengths(150),
        features=domains.lengths(140),
        kind=st.sampled_from(KINDS),
        full=st.booleans(),
        lengths_dtype=st.sampled_from(["int32", "int64"]),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        seed=domains.seeds(),
    )


CONTRACT = Contract(
    operator="pooling",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "dx": "backward"},
    pinned=(
        *(
            Case(dtype, length=length, features=features, kind=kind, tile=tile)
            for tile, (length, features) in enumerate(((257, 17), (131, 65)))
            for kind in KINDS
            for dtype in domains.DTYPES
        ),
        # The largest is at a position that 16 bits cannot hold.
        Case("float16", 1, length=33_000, features=1, kind="max", full=True, seed=196),
        Case("float16", length=2500, features=3, kind="mean_max"),
    ),
    usual=tuple(
        Case(dtype, length=64, features=768, kind=kind)
        for kind in KINDS
        for dtype in domains.DTYPES
    ),
    properties={
        "padding does not count": padding_does_not_count,
        "NaN is seen": nan_is_seen,
        "first takes the gradient": first_takes_the_gradient,
        "length out of range": length_out_of_range,
        "adjoint": adjoint,
    },
)
