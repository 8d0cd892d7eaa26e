"""What the contracts of layer norm and RMS norm have in common.

Each normalises rows, with a residual their sum as it is stored; foreign functions may normalise the
sum before it is rounded, which is more exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains
from twofold.core.verify.contract import Inapplicable, Property, Subject
from twofold.core.verify.rounding import Approx, exact

Array = domains.Array


def drawn() -> dict[str, st.SearchStrategy[Any]]:
    """Return strategies for the fields that cases of every norm begin with."""
    return {
        "dtype": st.sampled_from(domains.DTYPES),
        "rows": domains.lengths(40),
        "columns": domains.lengths(150),
        "magnitude": st.sampled_from(domains.MAGNITUDES),
        "layout": st.sampled_from(domains.LAYOUTS),
        "residual": st.booleans(),
        "stream_gradient": st.booleans(),
    }


def drawing(case: Any) -> tuple[Callable[[str], Array], Callable[[], Array]]:
    """Return functions that draw rows (R, C) of a magnitude, and a parameter (C,)."""
    rng = np.random.default_rng(case.seed)

    def rows(magnitude: str) -> Array:
        return domains.draw(rng, (case.rows, case.columns), magnitude, case.dtype)

    def parameter() -> Array:
        return domains.draw(rng, (case.columns,), "unit", case.dtype)

    return rows, parameter


def run(
    side: Side,
    operator: Any,
    case: Any,
    given: Any,
    parameters: Mapping[str, Array],
    **options: Any,
) -> dict[str, Any]:
    """Compute a norm on a side, forward and backward.

    Args:
        operator: the norm, of this side.
        given: the inputs: x, residual, dout and dh.
        parameters: the arguments that follow x in the call, by name.
        options: the call's, besides residual and eps.
    """
    placed = partial(domains.place, side, dtype=case.dtype, layout=case.layout)
    how = domains.tile(operator, case)
    out, cache = operator.forward(
        placed(given.x),
        *(placed(x) for x in parameters.values()),
        residual=placed(given.residual),
        eps=case.eps,
        **options,
        **how,
    )
    shapes = {f"d{name}": x.shape for name, x in parameters.items()}
    written = domains.receivers(side, case, **shapes)
    gradients = operator.backward(
        placed(given.dout), cache, placed(given.dh), **domains.into(written), **how
    )
    outputs = {"out": out, "h": cache.h, **gradients._asdict(), **written}
    return {name: x for name, x in outputs.items() if x is not None}


def stored_sum(x: Array, y: Array, dtype: str) -> Array:
    """Return x + y as any machine computes it, bit for bit: a float32 sum and a cast (IEEE 754)."""
    if dtype == "float64":
        return x + y
    with np.errstate(over="ignore"):
        return domains.representable(x.astype(np.float32) + y.astype(np.float32), dtype)


def normalised_stream(case: Any, given: Any, h: Approx) -> Approx:
    """Return what is normalised: h as it is stored, or the sum before that."""
    if not case.unrounded or given.residual is None:
        return h
    return exact(given.residual, h.on) + exact(given.x, h.on)


def properties(
    inputs: Callable[[Any], Any],
    plain: Callable[[Any], Any],
    truth: Callable[[Any, Any], Mapping[str, Approx]],
) -> dict[str, Property]:
    """Return the properties of every norm of rows.

    Args:
        inputs, truth: the contract's; the inputs include x, dout and residual, (R, C).
        plain: makes a case without what precedes the norm.
    """

    def rows_apart(subject: Subject, case: Any) -> None:
        """A row gives the same bits alone as among others, except in sums over rows."""
        base = replace(plain(case), layout="contiguous")  # NumPy sums others otherwise
        given, one = inputs(base), replace(base, rows=1)
        last = given._replace(x=given.x[-1:], dout=given.dout[-1:])
        among = subject.compute(base, given)
        rows = {name: among[name][-1:] for name in among.keys() & {"out", "dx"}}
        claims.same_bits(rows, subject.compute(one, last), "alone")

    def leading_axes(subject: Subject, case: Any) -> None:
        """However many axes the rows are spread over, the bits are the same."""
        columns = min(case.columns, 8)
        small = replace(plain(case), rows=3, columns=columns, layout="contiguous")
        given, shapes = inputs(small), ((3, columns), (1, 3, 1, columns))

        def spread(shape: tuple[int, ...]) -> Any:
            return given._replace(x=given.x.reshape(shape), dout=given.dout.reshape(shape))

        claims.leading_axes(subject, small, spread, shapes, truth(small, given))

    def stream_as_stored(subject: Subject, case: Any) -> None:
        """What is normalised is the stream as stored: given that alone, the bits are the same."""
        base = replace(plain(case), layout="contiguous")  # as above
        if case.unrounded:
            raise Inapplicable("the sum is normalised before it is stored")
        small = replace(base, rows=3, columns=min(case.columns, 70), residual=True)
        given = inputs(small)
        found = subject.compute(small, given)
        alone = given._replace(x=found["h"].astype(np.float64), residual=None)
        again = subject.compute(replace(small, residual=False), alone)
        claims.same_bits({"out": found["out"]}, again, "of the stored stream")

    return {
        "rows apart": rows_apart,
        "leading axes": leading_axes,
        "stream as stored": stream_as_stored,
    }
