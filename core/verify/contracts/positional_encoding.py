"""The contract of positions added to embeddings, and of the sinusoids they may be.

(1) table[id]·scale: scale rounded once to float32 (its error is computed), one product.
(2) + position: one rounding. (3) dropout: a product by 1/(1 − p), or exactly 0. The cast.

Backward: dropout's product, then the sums by id of `contracts.embedding` (γ_{n−1}·Σ|x| for n
places), dtable times scale, the cast.

Sinusoids are float64 arithmetic on either side, and one cast: the angle is position/10000^(2i/d),
where the exponent is a rounded quotient, the power errs by that rounding times log 10000 and by its
own, and the quotient by one more (`rotary.angles`). sin and cos move by at most |cos|·e + e²/2 and
|sin|·e + e²/2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Inapplicable, Subject
from twofold.core.verify.contracts import rotary
from twofold.core.verify.contracts.embedding import SPREADS, draw_ids, sums_by_id
from twofold.core.verify.rounding import Approx, exact, machine
from twofold.reference import dropout

Array = domains.Array

LEARNED = ("counted", "given")
POSITIONS = (*LEARNED, "none", "constant")  # "constant" ones are counted


@dataclass(frozen=True)
class Case:
    """Places, rows and columns, and everything that varies about a call."""

    dtype: str = "float32"
    batch: int = 2
    length: int = 5
    rows: int = 7
    spare_positions: int = 0  # rows of the position table beyond the length
    columns: int = 8
    positions: str = "counted"
    spread: str = "uniform"
    ids_dtype: str = "int64"
    scale: float = 1.0
    dropout_p: float = 0.0
    magnitude: str = "unit"
    layout: str = "contiguous"
    first: int = 0  # position of the first sinusoid
    seed: int = 0
    into: str = ""  # dtype of the arrays that backward writes parameters' gradients into
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """Ids and positions, and float64 arrays that the case's dtype holds exactly."""

    ids: Array
    table: Array
    position_table: Array | None
    positions: Array | None
    dout: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)
    shape = (case.batch, case.length)
    position_rows = case.length + case.spare_positions
    ids = draw_ids(rng, shape, case.rows, case.spread)
    positions = draw_ids(rng, shape, position_rows, "uniform")
    table, position_table, dout = (
        domains.draw(rng, (*n, case.columns), case.magnitude, case.dtype)
        for n in ((case.rows,), (position_rows,), shape)
    )
    return Inputs(
        ids=ids,
        table=table,
        position_table=None if case.positions == "none" else position_table,
        positions=positions if case.positions == "given" else None,
        dout=dout,
    )


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    placed = partial(domains.place, side, dtype=case.dtype, layout=case.layout)

    def integers(x: Array | None) -> Any:
        return None if x is None else side.asarray(x, case.ids_dtype)

    how = domains.tile(side.positional_encoding, case)
    out, cache = side.positional_encoding.forward(
        integers(given.ids),
        placed(given.table),
        placed(given.position_table),
        positions=integers(given.positions),
        learned=case.positions != "constant",
        scale=case.scale,
        dropout_p=case.dropout_p,
        seed=case.seed,
        **how,
    )
    positions = given.position_table if case.positions in LEARNED else None
    written = domains.receivers(
        side,
        case,
        dtable=given.table.shape,
        dposition_table=None if positions is None else positions.shape,
    )
    gradients = side.positional_encoding.backward(
        placed(given.dout), cache, **domains.into(written), **how
    )
    sinusoids = side.positional_encoding.sinusoidal(
        integers(sinusoid_positions(case)), case.columns, dtype=sinusoid_dtype(case)
    )
    outputs = {"out": out, "sinusoids": sinusoids, **gradients._asdict(), **written}
    return {name: x for name, x in outputs.items() if x is not None}


def sinusoid_positions(case: Case) -> Array:
    """Return the positions at which the case takes sinusoids."""
    return case.first + np.arange(case.length)


def sinusoid_dtype(case: Case) -> str:
    """Return the dtype of the case's sinusoids."""
    return "float64" if case.dtype == "float64" else "float32"


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype)
    keep = dropout.keep_mask(given.dout.shape, case.dropout_p, case.seed)

    def drop(x: Approx) -> Approx:
        return (x * dropout.scale(case.dropout_p)).where(keep) if case.dropout_p > 0.0 else x

    # (1) look up and scale
    out = exact(given.table[given.ids], on) * case.scale
    # (2) add the position
    positions = given.positions
    if positions is None:
        positions = np.broadcast_to(np.arange(case.length), given.ids.shape)
    if given.position_table is not None:
        out = out + given.position_table[positions]
    # (3) drop out
    outputs = {"out": drop(out)}
    # backward (3), then (2) and (1)
    dout = drop(exact(given.dout, on))
    if case.positions in LEARNED:
        rows = case.length + case.spare_positions
        outputs["dposition_table"] = sums_by_id(dout, positions, rows)
    outputs["dtable"] = sums_by_id(dout, given.ids, case.rows) * case.scale
    found = domains.returned(case, outputs, "dtable", "dposition_table")
    return found | {"sinusoids": sinusoids(case)}


def sinusoids(case: Case) -> Approx:
    """Return the sinusoids, with the float64 error of the angle and one rounding."""
    columns = np.arange(case.columns)
    pair = columns // 2
    angle = rotary.angles(sinusoid_positions(case), 2 * pair / case.columns, 10000.0)
    sine, cosine, even = rotary.sine(angle), rotary.cosine(angle), columns % 2 == 0
    both = Approx(
        np.where(even, sine.value, cosine.value), np.where(even, sine.error, cosine.error), sine.on
    )
    return rotary.cast(both, machine(sinusoid_dtype(case)))


def outside_the_tables(subject: Subject, case: Case) -> None:
    """An id or position outside its table gives a row of NaN, and disturbs no other row."""
    if subject.name == "reference":
        raise Inapplicable("the reference refuses it")
    case = replace(case, positions="given", tile=None)
    given = inputs(case)
    assert given.position_table is not None and given.positions is not None
    rng = np.random.default_rng(case.seed + 1)
    bad_id, bad_position = rng.random((2, *given.ids.shape)) < 0.2
    outside = given._replace(
        ids=np.where(bad_id, case.rows, given.ids),
        positions=np.where(bad_position, -1, given.positions),
    )
    expected, found = (subject.compute(case, x)["out"] for x in (given, outside))
    bad = bad_id | bad_position
    assert np.isnan(found[bad]).all(), "an id or position outside gives numbers"
    assert np.array_equal(found[~bad], expected[~bad]), "an id outside disturbs others"


def constants_have_no_gradient(subject: Subject, case: Case) -> None:
    """A learned position table has a gradient, a constant one has none."""
    has = "dposition_table" in subject.compute(case, inputs(case))
    assert has == (case.positions in LEARNED), f"dposition_table is {'' if has else 'not '}there"


def adjoint(subject: Subject, case: Case) -> None:
    """The sum is linear in its tables: ⟨out, dout⟩ = ⟨E, dE⟩ where there are no positions."""
    case = replace(case, positions="none")
    given = inputs(case)
    found, bound = subject.compute(case, given), truth(case, given)
    claims.adjoint(found, bound, given.dout, table=("dtable", given.table))


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        batch=domains.lengths(70),
        length=domains.lengths(17),
        rows=domains.lengths(20),
        spare_positions=st.integers(0, 3),
        columns=domains.lengths(140),
        positions=st.sampled_from(POSITIONS),
        spread=st.sampled_from(SPREADS),
        ids_dtype=st.sampled_from(["int32", "int64"]),
        scale=st.sampled_from([1.0, 8.0, 27.7]),
        dropout_p=st.sampled_from([0.0, 0.1, 0.5]),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        first=st.sampled_from([0, 1, 511, 10**6]),
        seed=domains.seeds(),
        into=st.sampled_from(domains.INTO),
    )


CONTRACT = Contract(
    operator="positional_encoding",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={
        "out": "forward",
        "sinusoids": "forward",
        "dtable": "backward",
        "dposition_table": "backward",
    },
    pinned=(
        *(
            Case(
                dtype=dtype,
                batch=67,
                columns=columns,
                spread="frequent",
                positions=positions,
                scale=5.5,
                dropout_p=0.1,
                seed=3,
                tile=tile,
            )
            for tile, (columns, positions) in enumerate(
                ((31, "counted"), (129, "given"), (257, "counted"))
            )
            for dtype in domains.DTYPES
        ),
        # more columns than a program takes, in rows, in places and in chunks
        Case(batch=1, length=64, rows=2, columns=1025, spread="one"),
        Case(batch=1, length=64, rows=1),  # a chunk of places that ends the row
        Case(batch=1, length=199, spread="frequent"),  # chunks of a row that is not the first
        Case(batch=1, rows=2, spread="one", positions="given", seed=2),  # the first row is empty
    ),
    usual=tuple(
        Case(dtype=dtype, length=64, rows=64, columns=1024, positions=positions, dropout_p=0.1)
        for positions in ("counted", "given")
        for dtype in domains.DTYPES
    ),
    properties={
        "NaN is seen": not_numbers.seen(inputs, run),
        "outside the tables": outside_the_tables,
        "constants have no gradient": constants_have_no_gradient,
        "adjoint": adjoint,
    },
)
