"""The contract of the embedding look-up: a gather is exact; its gradient is a sum by id.

Forward copies bits: bound 0. dtable[v] = Σ dout over the n places that looked up v, in float32, in
whatever order and chunks: γ_{n−1}·Σ|dout| (Higham 2002, (4.4)), and the cast, half a unit in the
last place. n = 1 is a copy, n = 0 is zero: bound 0. The probabilistic bound has √n for n, except
where all n terms are alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Inapplicable, Subject
from twofold.core.verify.rounding import Approx, exact, machine

Array = domains.Array

SPREADS = ("uniform", "frequent", "one", "distinct")


@dataclass(frozen=True)
class Case:
    """Places, rows and columns; `spread` says how often an id recurs."""

    dtype: str = "float32"
    batch: int = 2
    length: int = 5
    rows: int = 7
    columns: int = 8
    spread: str = "uniform"
    ids_dtype: str = "int64"
    magnitude: str = "unit"
    layout: str = "contiguous"
    seed: int = 0
    into: str = ""  # dtype of the arrays that backward writes parameters' gradients into
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """Ids, and float64 arrays that the case's dtype holds exactly."""

    ids: Array
    table: Array
    dout: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)
    shape = (case.batch, case.length)
    ids = draw_ids(rng, shape, case.rows, case.spread)
    table, dout = (
        domains.draw(rng, (*n, case.columns), case.magnitude, case.dtype)
        for n in ((case.rows,), shape)
    )
    return Inputs(ids, table, dout)


def draw_ids(rng: np.random.Generator, shape: tuple[int, ...], rows: int, spread: str) -> Array:
    """Draw ids below `rows`: of "frequent" nine in ten are the same, of "one" all."""
    size = int(np.prod(shape))
    ids = rng.integers(0, rows, size)
    if spread == "frequent":
        ids[rng.random(size) < 0.9] = rng.integers(0, rows)
    elif spread == "one":
        ids[:] = rng.integers(0, rows)
    elif spread == "distinct":
        ids = rng.permutation(max(rows, size))[:size] % rows
    return ids.reshape(shape)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = domains.tile(side.embedding, case)
    table = domains.place(side, given.table, case.dtype, case.layout)
    dout = domains.place(side, given.dout, case.dtype, case.layout)
    out, cache = side.embedding.forward(side.asarray(given.ids, case.ids_dtype), table, **how)
    written = domains.receivers(side, case, dtable=given.table.shape)
    gradients = side.embedding.backward(dout, cache, **domains.into(written), **how)
    return {"out": out, **gradients._asdict(), **written}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given, on = given or inputs(case), machine(case.dtype)
    dtable = sums_by_id(exact(given.dout, on), given.ids, case.rows)
    once = np.bincount(given.ids.ravel(), minlength=case.rows)[:, None] <= 1
    dtable = dtable.returned(domains.received(case))
    return {
        "out": exact(given.table[given.ids], on),
        # A row looked up once is a copy, one never looked up is zero.
        "dtable": replace(dtable, error=np.where(once, 0.0, dtable.error)),
    }


def sums_by_id(x: Approx, ids: Array, rows: int) -> Approx:
    """Return the sums of x (…, D) by id, (rows, D); a row without places is 0, exactly."""
    places, D = ids.ravel(), x.value.shape[-1]
    flat = x.reshape(-1, D)
    value, error = np.zeros((rows, D)), np.zeros((rows, D))
    for row in np.unique(places):
        total = flat[places == row].sum(0)
        value[row], error[row] = total.value, total.error
    return Approx(value, error, x.on)


def outside_the_table(subject: Subject, case: Case) -> None:
    """An id outside the table gives a row of NaN, adds no gradient, and disturbs no other."""
    if subject.name == "reference":
        raise Inapplicable("the reference refuses it")
    given = inputs(case)
    bad = np.asarray(np.random.default_rng(case.seed + 1).random(given.ids.shape) < 0.3)
    outside = np.where(given.ids % 2 == 0, case.rows, -1)
    without = np.where(bad[..., None], 0.0, given.dout)
    found = subject.compute(case, given._replace(ids=np.where(bad, outside, given.ids)))
    out, dtable = found["out"], found["dtable"]
    expected = subject.compute(case, given)["out"]
    assert np.isnan(out[bad]).all(), "an id outside the table gives numbers"
    assert np.array_equal(out[~bad], expected[~bad]), "an id outside the table disturbs others"
    kept = np.isin(np.arange(case.rows), given.ids[~bad])
    assert not dtable[~kept].any(), "an id outside the table adds to a gradient"
    bound = sums_by_id(exact(without, machine(case.dtype)), given.ids, case.rows).stored()
    fewer = subject.compute(case, given._replace(dout=without))["dtable"]
    claims.agree("dtable", fewer, dtable, bound, "with an id outside the table")


def adjoint(subject: Subject, case: Case) -> None:
    """A look-up is linear in its table: ⟨out, dout⟩ = ⟨E, dE⟩."""
    given = inputs(case)
    found, bound = subject.compute(case, given), truth(case, given)
    claims.adjoint(found, bound, given.dout, table=("dtable", given.table))


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        batch=st.integers(1, 3),
        length=domains.lengths(150),
        rows=domains.lengths(20),
        columns=domains.lengths(140),
        spread=st.sampled_from(SPREADS),
        ids_dtype=st.sampled_from(["int32", "int64"]),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        seed=domains.seeds(),
        into=st.sampled_from(domains.INTO),
    )


CONTRACT = Contract(
    operator="embedding",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "dtable": "backward"},
    pinned=(
        *(
            Case(dtype, length=199, columns=columns, spread="frequent", tile=tile)
            for tile, columns in enumerate((31, 129, 257))
            for dtype in domains.DTYPES
        ),
        Case("bfloat16", length=130, spread="frequent", layout="strided", into="float32"),
        # more columns than a program takes, in rows, in places and in chunks
        Case(batch=1, length=64, rows=2, columns=1025, spread="one"),
        Case(rows=2, spread="one"),  # the last row of the table alone
    ),
    usual=tuple(Case(dtype, length=64, rows=64, columns=1024) for dtype in domains.DTYPES),
    properties={
        "outside the table": outside_the_table,
        "adjoint": adjoint,
        "NaN is seen": not_numbers.seen(inputs, run),
    },
)
