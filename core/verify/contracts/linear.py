"""The contract of the linear layer.

The bound, with the constants of `machines` and γ_n = nu/(1 − nu):

(1) ẑ = x·Wᵀ on the matrix unit: each of K products errs by u_product, each of K sums by u_sum
    (Higham 2002, (3.12)): E_z = ((1 + u_product)(1 + γ_K) − 1)·|x||W|ᵀ; the bias adds one rounding.
(2) f at a z known to ± E_z, before it is stored: `contracts.activation`. The cast of the result.

Backward reads z as stored, so E_z plus half a unit in the last place; where ReLU's z may be of
either sign its derivative is unknown, and E is 1.

(2) dz = dout·f′(ẑ), one rounding. db sums it in float32 over R rows before it is stored: R − 1
    roundings in any order, E_db = Σ E_dz + γ_{R−1}·Σ(|dz| + E_dz) (Higham 2002, (4.4)).
(1) dz is cast (unless it is dout itself, held exactly), and dx = dz·W, dW = dzᵀ·x are products as
    above of operands with an error: |A||E_B| + |E_A|(|B| + E_B). Their cast.

In the probabilistic bound the casts of dz are independent, and add √(Σ (E·w)²) to dx and dW.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Contract, Subject
from twofold.core.verify.contracts.activation import activate, activate_grad
from twofold.core.verify.rounding import Approx, exact, machine, matmul
from twofold.kernels.linear_tiles import ENTRIES
from twofold.reference.activation import KINDS

Array = domains.Array


@dataclass(frozen=True)
class Case:
    """Batch × rows × features, and everything that varies about them."""

    dtype: str = "float32"
    batch: int = 1
    rows: int = 3
    features_in: int = 8
    features_out: int = 5
    activation: str | None = None
    bias: bool = True
    magnitude: str = "unit"
    layout: str = "contiguous"
    into: str = ""  # dtype of the arrays that backward writes parameters' gradients into
    unread: tuple[str, ...] = ()  # arguments whose gradients, backward is told, nobody reads
    keep: bool = True  # whether forward keeps what backward needs; if not, there is no backward
    allow_tf32: bool = False
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """Float64 arrays that the case's dtype holds exactly."""

    x: Array
    weight: Array
    bias: Array | None
    dout: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays; the weights keep z about as large as x, like a layer's."""
    rng = np.random.default_rng(case.seed)
    lead, K, N = (case.batch, case.rows), case.features_in, case.features_out
    x = domains.values(rng, (*lead, K), case.magnitude, case.dtype)
    weight = domains.values(rng, (N, K), "unit") / np.sqrt(K)
    bias = domains.values(rng, (N,), "unit") if case.bias else None
    dout = domains.values(rng, (*lead, N), "unit")
    return Inputs(
        x=domains.representable(x, case.dtype),
        weight=domains.representable(weight, case.dtype),
        bias=None if bias is None else domains.representable(bias, case.dtype),
        dout=domains.representable(dout, case.dtype),
    )


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    placed = partial(domains.place, side, dtype=case.dtype, layout=case.layout)
    how = domains.entry(side, case, ENTRIES)
    products = {} if side.name == "reference" else {"allow_tf32": case.allow_tf32}
    x, weight, bias = (placed(a) for a in given[:3])
    out, cache = side.linear.forward(
        x, weight, bias, case.activation, **domains.kept(case), **products, **how
    )
    if not case.keep:
        return {"out": out}
    N, K = given.weight.shape
    shapes: dict[str, tuple[int, ...] | None]
    shapes = {"dweight": (N, K), "dbias": (N,) if case.bias else None}
    shapes |= {f"d{name}": None for name in case.unread if name != "x"}
    written = domains.receivers(side, case, **shapes)
    how |= domains.into(written) | {f"of_{name}": False for name in case.unread}
    gradients = side.linear.backward(placed(given.dout), cache, **how)
    outputs = {"out": out, **gradients._asdict(), **written}
    return {name: x for name, x in outputs.items() if x is not None}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds: the steps of the kernel, in running error analysis."""
    given, on = given or inputs(case), machine(case.dtype, case.allow_tf32)
    lead, K, N = (case.batch, case.rows), case.features_in, case.features_out
    x, dout = exact(given.x, on).reshape(-1, K), exact(given.dout, on).reshape(-1, N)
    weight = exact(given.weight, on)
    # (1) product and bias
    z = matmul(x, weight.mT)
    if given.bias is not None:
        z = z + exact(given.bias, on)
    # (2) activation
    out = (z if case.activation is None else activate(z, case.activation)).reshape(*lead, N)
    if not case.keep:
        return {"out": out.returned()}
    # backward (2) activation
    dz = dout
    if case.activation is not None:
        dz = dout * activate_grad(z.stored(), case.activation)
    dbias = dz.sum(0)
    # backward (1) product
    if case.activation is not None:
        dz = dz.stored()
    outputs = {
        "out": out,
        "dx": matmul(dz, weight).reshape(*lead, K),
        "dweight": matmul(dz.mT, x),
    }
    if case.bias:
        outputs["dbias"] = dbias
    outputs = {n: x for n, x in outputs.items() if n.removeprefix("d") not in case.unread}
    return domains.returned(case, outputs, "dweight", "dbias")


def homogeneity(subject: Subject, case: Case) -> None:
    """Four times the input gives four times the output, bit for bit."""
    base = replace(bare(case), dtype="float32", magnitude="unit")
    given = inputs(base)
    one, four = (subject.compute(base, given._replace(x=c * given.x))["out"] for c in (1.0, 4.0))
    assert np.array_equal(4.0 * one, four), "linear(4x) is not 4·linear(x)"


def adjoint(subject: Subject, case: Case) -> None:
    """The layer is linear in x and in its weights: ⟨out, dout⟩ = ⟨x, dx⟩ = ⟨W, dW⟩."""
    base = bare(case)
    given = inputs(base)
    found, bound = subject.compute(base, given), truth(base, given)
    arguments = {"x": ("dx", given.x), "weight": ("dweight", given.weight)}
    claims.adjoint(found, bound, given.dout, **arguments)


def bare(case: Case) -> Case:
    """Return the case with the product alone."""
    return replace(case, bias=False, activation=None)


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""

    def build(precision: tuple[str, bool], **drawn: Any) -> Case:
        return Case(dtype=precision[0], allow_tf32=precision[1], **drawn)

    return st.builds(
        build,
        precision=st.sampled_from(domains.PRECISIONS),
        batch=st.integers(1, 3),
        rows=domains.lengths(40),
        features_in=domains.lengths(140),
        features_out=domains.lengths(70),
        activation=st.sampled_from((None, *KINDS)),
        bias=st.booleans(),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(domains.LAYOUTS),
        into=st.sampled_from(domains.INTO),
        keep=st.sampled_from((True, True, True, False)),
        seed=domains.seeds(),
    )


def with_every_tile(sizes: Sequence[tuple[int, int]], features_in: int) -> tuple[Case, ...]:
    """Return a case of (rows, columns) for each entry of the tile table and each precision."""
    return tuple(
        Case(
            dtype=dtype,
            allow_tf32=allow_tf32,
            rows=rows,
            features_in=features_in,
            features_out=columns,
            activation="gelu",
            tile=tile,
        )
        for tile, (rows, columns) in enumerate(sizes)
        for dtype, allow_tf32 in domains.PRECISIONS
        if (dtype == "float32") == (ENTRIES[tile][0] == 4)
    )


CONTRACT = Contract(
    operator="linear",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "dx": "backward", "dweight": "backward", "dbias": "backward"},
    pinned=(
        *with_every_tile(
            ((127, 129), (65, 63), (33, 31), (129, 65), (63, 65), (31, 33), (65, 129), (65, 257)),
            65,
        ),
        # rows that are not one stride apart, read and written
        Case(batch=2, rows=3, layout="transposed", into="own"),
        # parameters' gradients kept in more bits than the parameters have
        Case("bfloat16", rows=67, activation="gelu", layout="strided", into="float32"),
        # gradients that nobody reads, beside ones that are read
        Case(unread=("x",), activation="gelu", into="own"),
        Case(unread=("weight",), activation="relu", into="own"),
        Case(unread=("bias",), into="own"),
        Case(unread=("weight", "bias")),
        # no backward
        *(
            Case(dtype, rows=67, features_in=33, activation=activation, keep=False)
            for dtype, activation in (("float32", "relu"), ("bfloat16", "gelu"), ("float16", None))
        ),
        Case("bfloat16", rows=3, features_in=1100, features_out=5),
        # shares of the rows of several blocks each, and more shares than are added at a time
        Case(rows=2049, features_in=3, features_out=2, activation="relu"),
        # rows split among several programs in the weight's gradient
        Case("bfloat16", rows=1450, features_in=40, features_out=24, layout="strided", into="own"),
    ),
    properties={
        "homogeneity": homogeneity,
        "adjoint": adjoint,
        "NaN is seen": not_numbers.seen(inputs, run),
    },
    # Tiles for aligned rows with aligned rows, the others with odd ones; Hopper's where chosen.
    compiled=(
        *with_every_tile(
            ((128, 128), (64, 64), (33, 31), (129, 65), (63, 65), (31, 33), (65, 129)), 64
        ),
        *(
            Case(dtype=dtype, rows=2048, features_in=64, features_out=4096)
            for dtype in ("float16", "bfloat16")
        ),
        # No backward: the activation's input is not written.
        *(
            Case(dtype, rows=2048, features_in=64, features_out=4096, activation="gelu", keep=False)
            for dtype in domains.DTYPES
        ),
        # The weight's gradient in float32, as training keeps it: by the tiles, and by Hopper's.
        *(
            replace(case, activation=None, into="float32")
            for case in with_every_tile(((128, 128), (64, 64), (33, 31)), 64)
            if case.dtype == "bfloat16"
        ),
        Case("bfloat16", rows=64, features_in=2048, features_out=4096, into="float32"),
        # The weight's gradient with rows split among programs, in every tile; in Hopper's.
        *(
            replace(case, activation=None, bias=False)
            for case in with_every_tile(
                [(4096, columns) for columns in (128, 64, 31, 65, 65, 33, 129)], 64
            )
        ),
        Case("bfloat16", rows=8192, features_in=1536, features_out=1536, bias=False),
    ),
)
