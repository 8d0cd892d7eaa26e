"""The contract of gated activation.

(1) f at a gate that the kernel holds exactly: `contracts.activation`. (2) The product with up
rounds once in float32, and out is cast once: f(gate) is not rounded to 16 bits in between. Backward
has two products and f′ for one gradient, one product and f for the other, each cast once. Foreign
functions may round f(gate) in between, as two separate operations of a library do; then dy·up is
rounded too, and the bound includes both roundings. The errors of factors multiply alike in any
order of the products, so the order is not part of the contract, up to underflow, which f and f′
allow for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Subject
from twofold.core.verify.contracts.activation import activate, activate_grad
from twofold.core.verify.rounding import Approx, exact, machine
from twofold.reference.activation import KINDS

Array = domains.Array

SHIFTS = (4.0, 0.25)  # factors for up, by which no product rounds


@dataclass(frozen=True)
class Case:
    """Batch × rows × columns, and everything that varies about them."""

    dtype: str = "float32"
    batch: int = 1
    rows: int = 3
    columns: int = 8
    kind: str = "silu"
    magnitude: str = "unit"
    layout: str = "contiguous"
    packed: bool = False  # gate and up are halves of one array, as are the arrays of `into`
    into: str = ""  # dtype of the arrays that backward writes into
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table
    rounded: bool = False  # foreign functions: whether f(gate) is rounded before the product


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    gate: Array
    up: Array
    dout: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays; the gate three times the unit normal, so that the tails are seen."""
    rng = np.random.default_rng(case.seed)
    shape, huge = (case.batch, case.rows, case.columns), case.magnitude == "huge"
    gate = domains.values(rng, shape, case.magnitude, case.dtype)
    gate *= 1.0 if huge else 3.0  # huge ones times 3 would overflow float16
    # If both were huge, all products of float16 would be infinite.
    of_up = "unit" if huge and case.dtype == "float16" else case.magnitude
    up, dout = domains.values(rng, shape, of_up, case.dtype), domains.values(rng, shape, "unit")
    return Inputs(*(domains.representable(a, case.dtype) for a in (gate, up, dout)))


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    gate, up = placed(side, case, given.gate, given.up)
    dout = domains.place(side, given.dout, case.dtype, case.layout)
    how = domains.tile(side.gated_activation, case)
    out, cache = side.gated_activation.forward(gate, up, case.kind, **how)
    written = _receivers(side, case, given.gate.shape)
    how |= domains.into(written)
    return {"out": out, **side.gated_activation.backward(dout, cache, **how)._asdict(), **written}


def placed(side: Side, case: Case, gate: Array, up: Array) -> tuple[Any, Any]:
    """Return gate and up on a side, side by side in one array if they are packed."""
    if not case.packed:
        gate, up = (domains.place(side, a, case.dtype, case.layout) for a in (gate, up))
        return gate, up
    both = np.concatenate((gate, up), axis=-1)
    return _halves(domains.place(side, both, case.dtype, case.layout))


def _receivers(side: Side, case: Case, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the arrays that backward is to write into, none if it makes its own."""
    if not case.packed:
        return domains.receivers(side, case, dgate=shape, dup=shape)
    both = domains.receivers(side, case, both=(*shape[:-1], 2 * shape[-1]))
    return dict(zip(("dgate", "dup"), _halves(both["both"]), strict=True)) if both else {}


def _halves(x: Any) -> tuple[Any, Any]:
    C = x.shape[-1] // 2
    return x[..., :C], x[..., C:]


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype)
    gate, up, dout = (exact(a, on) for a in given)
    # (1) activation
    f = domains.between(case, activate(gate, case.kind))
    # (2) product
    out = f * up
    # backward (2) product
    dup, df = dout * f, domains.between(case, dout * up)
    # backward (1) activation
    dgate = df * activate_grad(gate, case.kind)
    outputs = {"out": out, "dgate": dgate, "dup": dup}
    return domains.returned(case, outputs, "dgate", "dup")


def linear_in_up(subject: Subject, case: Case) -> None:
    """A power of two times up multiplies out and dgate, bit for bit, and leaves dup as it is."""
    base = replace(case, dtype="float32", magnitude="unit", into="")
    given = inputs(base)
    given = given._replace(gate=np.clip(given.gate, -4.0, 4.0))  # else f may nearly underflow
    found = subject.compute(base, given)
    for shift in SHIFTS:
        other = subject.compute(base, given._replace(up=shift * given.up))
        expected = {n: found[n] * (1.0 if n == "dup" else shift) for n in found}
        claims.same_bits(expected, {n: other[n] for n in found}, f"with {shift:g} times up")


def odd_part(subject: Subject, case: Case) -> None:
    """f(x) − f(−x) is x where gates at x and −x add up to 1; f(x) + f(−x) is 0 for tanh.

    Their derivatives: f′(x) + f′(−x) is 1, but for ReLU's at 0; f′(x) − f′(−x) is 0 for tanh.
    """
    case = replace(case, into="")
    given, tanh = inputs(case), case.kind == "tanh"
    here, there = given, given._replace(gate=-given.gate)
    found = [subject.compute(case, at) for at in (here, there)]
    bounds = [truth(case, at) for at in (here, there)]
    nothing = np.zeros_like(given.gate)
    sums = {
        "out": (1 if tanh else -1, nothing if tanh else given.gate * given.up),
        "dgate": (-1 if tanh else 1, nothing if tanh else given.dout * given.up),
    }
    for name, (sign, expected) in sums.items():
        one, other = (a[name].astype(np.float64) for a in found)
        seen = np.isfinite(one) & np.isfinite(other)
        if case.kind == "relu" and name == "dgate":
            seen &= given.gate != 0.0
        gap = np.abs(one + sign * other - expected)
        bound = sum(b[name].error for b in bounds)
        assert not (gap > bound)[seen].any(), f"{name} at x and −x do not belong together"


def one_gate(subject: Subject, case: Case) -> None:
    """Out and dup are up and dout times the same f(gate), so dup·up = dout·out."""
    case = replace(case, into="")
    given = inputs(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    pairs = {"dup": given.up, "out": given.dout}
    one, other = (found[n].astype(np.float64) * x for n, x in pairs.items())
    allowed = sum(bounds[n].error * np.abs(x) for n, x in pairs.items())
    wrong = (np.abs(one - other) > allowed)[np.isfinite(found["dup"]) & np.isfinite(found["out"])]
    assert not wrong.any(), "dup·up is not dout·out"


def elements_apart(subject: Subject, case: Case) -> None:
    """In another order, the elements have the same bits, wherever they then stand."""
    given = inputs(case)
    turned = Inputs(*(np.flip(a).copy() for a in given))
    expected = {n: np.flip(a) for n, a in subject.compute(case, given).items()}
    claims.same_bits(expected, subject.compute(case, turned), "in another order")


def leading_axes(subject: Subject, case: Case) -> None:
    """However many axes the rows are spread over, the bits are the same."""
    small = replace(case, batch=1, rows=6, into="")
    given, shapes = inputs(small), ((6, case.columns), (2, 1, 3, case.columns))

    def spread(shape: tuple[int, ...]) -> Inputs:
        return Inputs(*(a.reshape(shape) for a in given))

    claims.leading_axes(subject, small, spread, shapes, truth(small, given))


def nan_stays(subject: Subject, case: Case) -> None:
    """A NaN in gate or up gives NaN, and no other element becomes NaN."""
    given = inputs(case)
    expected = np.isnan(subject.compute(case, given)["out"])
    for name, at in (("gate", (0, 0, 0)), ("up", (-1, -1, -1))):
        x = getattr(given, name).copy()
        x[at] = np.nan
        out = subject.compute(case, given._replace(**{name: x}))["out"]
        here = expected.copy()
        here[at] = True
        assert np.array_equal(np.isnan(out), here), f"NaN of {name} is not where it belongs"


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    return st.builds(
        Case,
        dtype=st.sampled_from(domains.DTYPES),
        batch=st.integers(1, 3),
        rows=domains.lengths(40),
        columns=domains.lengths(300),
        kind=st.sampled_from(KINDS),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        packed=st.booleans(),
        into=st.sampled_from(domains.INTO),
        seed=domains.seeds(),
        tile=st.none(),
    )


CONTRACT = Contract(
    operator="gated_activation",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "dgate": "backward", "dup": "backward"},
    pinned=(
        *(
            Case(dtype=dtype, rows=rows, columns=columns, tile=tile, packed=True, into="own")
            for tile, sizes in enumerate((((9, 127), (7, 257)), ((2, 1025), (3, 1023))))
            for rows, columns in sizes
            for dtype in domains.DTYPES
        ),
        *(
            Case(dtype=dtype, rows=17, columns=41, kind=kind)
            for kind in KINDS
            for dtype in domains.DTYPES
        ),
        *(Case(kind=kind, magnitude="zeros") for kind in KINDS),  # the kink of ReLU
        *(Case(rows=5, columns=300, layout=x, into="own", packed=True) for x in domains.LAYOUTS),
        # rows that are not one stride apart, read and written
        Case(batch=2, columns=5, layout="transposed", into="own"),
        Case(columns=9, layout=domains.MIXED, into="own"),  # written to rows laid out differently
        Case("bfloat16", rows=5, columns=33, packed=True, into="float32"),
        Case(rows=3, columns=1, packed=True),
    ),
    # Odd sizes by each tile, which shows what the masks cost; each activation at usual sizes.
    compiled=tuple(
        Case(dtype=dtype, rows=7, columns=columns, tile=tile, packed=True)
        for tile, columns in enumerate((65, 1025))
        for dtype in domains.DTYPES
    ),
    usual=tuple(
        Case(dtype=dtype, rows=64, columns=1024, kind=kind, packed=True)
        for kind in KINDS
        for dtype in domains.DTYPES
    ),
    properties={
        "linear in up": linear_in_up,
        "odd part": odd_part,
        "one gate": one_gate,
        "elements apart": elements_apart,
        "leading axes": leading_axes,
        "NaN stays": nan_stays,
        "NaN is seen": not_numbers.seen(inputs, run),
    },
)
