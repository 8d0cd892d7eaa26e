"""The contract of rotary positions: two products and a sum per feature, and rotation's properties.

y₁ = x₁cos − x₂sin and y₂ = x₁sin + x₂cos, cos and sin as given, exactly: two products and a sum are
three roundings, u(|x₁cos| + |x₂sin|) + u|y| to first order (the running analysis has the rest),
with or without fma; then the cast. Features without a pair are copies: bound 0. Backward is the
same with −sin. Where y₁ cancels, the error stays that of the products.

The tables are float64 arithmetic rounded once, to whatever dtype is requested; their bound is
`angles`, which the sinusoids of positional encoding share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import domains, not_numbers
from twofold.core.verify.contract import Contract, Subject, compare
from twofold.core.verify.rounding import Approx, Machine, exact, machine

Array = domains.Array

LAYOUTS = (*domains.LAYOUTS, "packed")  # q and k as views of one projection (B, L, (H + G)·D)


@dataclass(frozen=True)
class Case:
    """Heads and lengths, and everything that varies about a call.

    `batched` gives every sequence positions of its own, `first` is the smallest position;
    `own_tables` has cos and sin in the dtype of q instead of float32.
    """

    dtype: str = "float32"
    batch: int = 1
    heads: int = 2
    key_heads: int = 2
    length: int = 4
    head_dim: int = 8
    pairs: int = 4
    base: float = 10000.0
    first: int = 0
    batched: bool = False
    own_tables: bool = False
    interleaved: bool = False
    magnitude: str = "unit"
    layout: str = "contiguous"
    seed: int = 0
    tile: int | None = None  # entry of the kernel's tile table


class Inputs(NamedTuple):
    """Positions, and float64 arrays that the case's dtype holds exactly."""

    positions: Array
    q: Array
    k: Array
    cos: Array
    sin: Array
    dq_out: Array
    dk_out: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    rng = np.random.default_rng(case.seed)
    positions = case.first + np.arange(case.length)
    if case.batched:
        positions = case.first + rng.integers(0, 1000, (case.batch, case.length))
    shapes = [(case.batch, n, case.length, case.head_dim) for n in (case.heads, case.key_heads)]
    q, k, dq, dk = (
        domains.draw(rng, shape, case.magnitude, case.dtype) for shape in (*shapes, *shapes)
    )
    cos, sin = (domains.representable(x.value, table_dtype(case)) for x in tables(case, positions))
    return Inputs(positions, q, k, cos, sin, dq, dk)


def table_dtype(case: Case) -> str:
    """Return the dtype of cos and sin."""
    return case.dtype if case.own_tables or case.dtype == "float64" else "float32"


def angles(positions: Array, exponents: Array, base: float) -> Approx:
    """Return positions/base^exponents as float64 arithmetic may compute them, here and on a side.

    `exponents` are quotients rounded once; the truth computed here is no better than what a side
    computes, so the distance between the two is up to twice the error of one.
    """
    on = machine("float64")
    exponent = Approx(exponents, on.u * exponents, on)
    log_base = math.log(base)
    power = base**exponents
    power_error = power * np.expm1(abs(log_base) * exponent.error + on.u_function)
    angle = exact(positions[..., None].astype(np.float64), on) / Approx(power, power_error, on)
    return replace(angle, error=2 * angle.error)


def sine(angle: Approx) -> Approx:
    """Bound sin x: |sin x̂ − sin x| ≤ |cos x|·e + ½e²."""
    return angle.function(np.sin, np.cos, 1.0)


def cosine(angle: Approx) -> Approx:
    """Bound cos x: |cos x̂ − cos x| ≤ |sin x|·e + ½e²."""
    return angle.function(np.cos, np.sin, 1.0)


def tables(case: Case, positions: Array) -> tuple[Approx, Approx]:
    """Return cos and sin in float64."""
    angle = angles(positions, np.arange(case.pairs) / case.pairs, case.base)
    return cosine(angle), sine(angle)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = domains.tile(side.rotary, case)
    made = side.rotary.tables(
        side.asarray(given.positions), 2 * case.pairs, base=case.base, dtype=made_dtype(case)
    )
    cos, sin = (domains.beside(side, x, case, table_dtype(case)) for x in (given.cos, given.sin))
    (q, k), cache = side.rotary.forward(
        *place(side, given.q, given.k, case), cos, sin, interleaved=case.interleaved, **how
    )
    grads = side.rotary.backward(*place(side, given.dq_out, given.dk_out, case), cache, **how)
    return {"q": q, "k": k, "cos": made[0], "sin": made[1], **grads._asdict()}


def made_dtype(case: Case) -> str:
    """Return the dtype that `tables` is to return."""
    return "float64" if case.dtype == "float64" else "float32"


def place(side: Side, q: Array, k: Array, case: Case) -> tuple[Any, Any]:
    """Return q and k on a side in the case's layout."""
    if case.layout == "packed":
        both = side.asarray(np.concatenate([q, k], axis=1).swapaxes(1, 2), case.dtype)
        both = both.swapaxes(1, 2)
        return both[:, : case.heads], both[:, case.heads :]
    placed = [domains.place(side, x, case.dtype, case.layout) for x in (q, k)]
    return placed[0], placed[1]


def turn(
    x: Approx,
    cos: Approx,
    sin: Approx,
    interleaved: bool,
    finish: Callable[[Approx], Approx] = Approx.stored,
) -> Approx:
    """Return x with its pairs rotated and cast; a feature without a pair passes exactly."""
    F = cos.value.shape[-1]
    cos, sin = (a.reshape(-1, 1, *a.value.shape[-2:]) for a in (cos, sin))
    one, two = (
        (slice(0, 2 * F, 2), slice(1, 2 * F, 2)) if interleaved else (slice(F), slice(F, 2 * F))
    )
    x1, x2 = x[..., one], x[..., two]
    value, error = x.value.copy(), x.error.copy()
    for where, y in ((one, x1 * cos - x2 * sin), (two, x1 * sin + x2 * cos)):
        y = finish(y)
        value[..., where], error[..., where] = y.value, y.error
    return Approx(value, error, x.on)


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given, on = given or inputs(case), machine(case.dtype)
    cos, sin = exact(given.cos, on), exact(given.sin, on)

    def both(sign: float, **x: Array) -> dict[str, Approx]:
        conjugated = sin if sign > 0 else -sin
        return {
            name: turn(exact(a, on), cos, conjugated, case.interleaved, Approx.returned)
            for name, a in x.items()
        }

    made = tables(case, given.positions)
    storage = machine(made_dtype(case))
    return {
        **both(1.0, q=given.q, k=given.k),
        **both(-1.0, dq=given.dq_out, dk=given.dk_out),
        **{n: cast(x, storage) for n, x in zip(("cos", "sin"), made, strict=True)},
    }


def true_tables(case: Case, positions: Array, on: Machine) -> tuple[Approx, Approx]:
    """Return cos and sin of the true angles, with the error of the tables that `inputs` makes."""
    storage = machine(table_dtype(case))
    cos, sin = (cast(x, storage) for x in tables(case, positions))
    return replace(cos, on=on), replace(sin, on=on)


def cast(x: Approx, storage: Machine) -> Approx:
    """Return float64 numbers cast to a dtype, where float32 is a rounding, too."""
    u = storage.u_storage or storage.u
    return replace(x, on=replace(storage, u_storage=u, tiny_storage=storage.tiny)).stored()


def norms(subject: Subject, case: Case) -> None:
    """A rotation keeps the length of every vector: |ŷ|² is |x|² to within Σ 2|y|e + e²."""
    given, on = inputs(case), machine(case.dtype)
    out = subject.compute(case, given)
    for name, x in (("q", given.q), ("k", given.k)):
        bound = turn(exact(x, on), *true_tables(case, given.positions, on), case.interleaved)
        found = (out[name].astype(np.float64) ** 2).sum(-1)
        error = (2 * np.abs(bound.value) * bound.error + bound.error**2).sum(-1)
        error += in_float64(case.head_dim) * (np.abs(bound.value) ** 2).sum(-1)
        fault = compare(f"|{name}|²", found, Approx((x**2).sum(-1), error, on))[2]
        assert not fault, fault


def relative_position(subject: Subject, case: Case) -> None:
    """The product of a query and a key is unchanged when both move by the same distance."""
    G = min(case.heads, case.key_heads)
    scores, errors = [], []
    for first in (case.first, case.first + 1000):
        moved = replace(case, first=first)
        given, on = inputs(moved), machine(case.dtype)
        found = subject.compute(moved, given)
        out = [found[name].astype(np.float64)[:, :G] for name in "qk"]
        table = true_tables(moved, given.positions, on)
        q, k = (turn(exact(x[:, :G], on), *table, case.interleaved) for x in (given.q, given.k))
        with np.errstate(invalid="ignore"):  # a NaN is reported, not warned about
            scores.append(out[0] @ out[1].mT)
        reach = np.abs(k.value) + k.error
        error = np.abs(q.value) @ k.error.mT + q.error @ reach.mT
        errors.append(error + in_float64(case.head_dim) * (np.abs(q.value) @ reach.mT))
    bound = Approx(scores[0], errors[0] + errors[1], machine("float64"))
    fault = compare("score of the same distance", scores[1], bound)[2]
    assert not fault, fault


def in_float64(n: int) -> float:
    """Return the largest relative error of n float64 products and sums, taken here."""
    return 4 * (n + 1) * 2.0**-53


def conjugation_inverts(subject: Subject, case: Case) -> None:
    """Backward applied to the output of forward gives its input back."""
    given, on = inputs(case), machine(case.dtype)
    there = subject.compute(case, given)
    turned = given._replace(
        dq_out=there["q"].astype(np.float64), dk_out=there["k"].astype(np.float64)
    )
    found = subject.compute(case, turned)
    cos, sin = true_tables(case, given.positions, on)
    for name, x in (("q", given.q), ("k", given.k)):
        away = turn(exact(x, on), cos, sin, case.interleaved)
        back = turn(away, cos, -sin, case.interleaved)
        fault = compare(f"{name} turned back", found[f"d{name}"], replace(back, value=x))[2]
        assert not fault, fault


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""

    def build(head_dim: int, share: float, **rest: Any) -> Case:
        pairs = max(1, int(share * head_dim) // 2)
        return Case(head_dim=head_dim, pairs=pairs, **rest)

    return st.builds(
        build,
        dtype=st.sampled_from(domains.DTYPES),
        batch=st.integers(1, 3),
        heads=domains.lengths(5),
        key_heads=domains.lengths(5),
        length=domains.lengths(70),
        head_dim=domains.lengths(80).filter(lambda n: n > 1),
        share=st.sampled_from([0.0, 0.5, 1.0]),
        base=st.sampled_from([10000.0, 500000.0, 2.0]),
        first=st.sampled_from([0, 1, 511, 10**6]),
        batched=st.booleans(),
        own_tables=st.booleans(),
        interleaved=st.booleans(),
        magnitude=st.sampled_from(domains.MAGNITUDES),
        layout=st.sampled_from(LAYOUTS),
        seed=domains.seeds(),
    )


CONTRACT = Contract(
    operator="rotary",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes=dict.fromkeys(("q", "k", "cos", "sin"), "forward")
    | dict.fromkeys(("dq", "dk"), "backward"),
    pinned=(
        *(
            Case(dtype, 2, 3, 2, length, head_dim, pairs, batched=True, layout="packed", tile=tile)
            for tile, (length, head_dim, pairs) in enumerate(
                ((65, 31, 15), (33, 67, 17), (9, 130, 65), (2, 514, 257))
            )
            for dtype in domains.DTYPES
        ),
        Case(head_dim=9, pairs=3, interleaved=True),  # and three features that do not rotate
        Case(batch=5, heads=3, key_heads=1, length=3, batched=True),
    ),
    usual=tuple(
        Case(dtype, 2, 16, 16, 64, 64, 32, interleaved=interleaved)
        for interleaved in (False, True)
        for dtype in domains.DTYPES
    ),
    properties={
        "NaN is seen": not_numbers.seen(inputs, run),
        "norms": norms,
        "relative position": relative_position,
        "conjugation inverts": conjugation_inverts,
    },
)
