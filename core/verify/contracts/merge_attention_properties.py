"""What is true of any merging of partial attention: claims that need no reference.

Each compares what an implementation computed for one call with what it computed for another, or
with what mathematics says without a sum. How far apart they may be is the derived bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from twofold.core.verify import claims
from twofold.core.verify.contract import Inapplicable, Outputs, Property, Subject
from twofold.core.verify.contracts.merge_attention_domain import (
    Case,
    Inputs,
    gradients,
    inputs,
    merge,
    truth,
)
from twofold.core.verify.domains import representable
from twofold.core.verify.rounding import Approx, Array, concatenate, exact, machine, stack

OF_PARTS = ("douts", "dlses")


def order_of_parts(subject: Subject, case: Case) -> None:
    """The order of the parts does not matter: reversed, they give the same within the bound."""
    given = inputs(case)
    first, bounds = subject.compute(case, given), truth(case, given)
    second = subject.compute(case, given._replace(outs=given.outs[::-1], lses=given.lses[::-1]))
    for name in first:
        x = second[name][::-1] if name in OF_PARTS else second[name]
        claims.agree(name, first[name], x, bounds[name], "with the parts in reverse")


def one_part_alone(subject: Subject, case: Case) -> None:
    """One part alone is its own merge, and its gradients are those of the result."""
    case = replace(case, parts=1, dead=0.0, float32_parts=False)
    given = inputs(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    dlse = np.zeros(given.lses.shape[1:]) if given.dlse is None else given.dlse
    own = {"out": given.outs[0], "lse": given.lses[0], "douts": given.dout[None]}
    own["dlses"] = dlse[None]
    for name in found:
        claims.within(name, found[name], replace(bounds[name], value=own[name]), "of one part")


def merged_halves(subject: Subject, case: Case) -> None:
    """Merging halves of the parts, then the two results, merges all, forward and backward.

    The chain's bound is that of its steps, one after the other; it must contain the truth of the
    whole.
    """
    case = replace(case, float32_parts=False)
    if case.parts < 2:
        raise Inapplicable("one part has no halves")
    given, cut = inputs(case), case.parts // 2
    parts = (slice(0, cut), slice(cut, None))
    sizes = [replace(case, parts=n) for n in (cut, case.parts - cut)]
    halves = [given._replace(outs=given.outs[x], lses=given.lses[x]) for x in parts]
    first = [subject.compute(*x) for x in zip(sizes, halves, strict=True)]
    between = given._replace(
        outs=np.stack([x["out"] for x in first]).astype(np.float64),
        lses=np.stack([x["lse"] for x in first]).astype(np.float64),
    )
    found = subject.compute(replace(case, parts=2), between)
    back = [
        subject.compute(
            size,
            half._replace(
                dout=found["douts"][i].astype(np.float64),
                dlse=found["dlses"][i].astype(np.float64),
            ),
        )
        for i, (size, half) in enumerate(zip(sizes, halves, strict=True))
    ]
    for name in OF_PARTS:
        found[name] = np.concatenate([x[name] for x in back])
    whole = truth(case, given)
    for name, bound in chain(case, given, parts).items():
        bound = replace(whole[name], error=bound.error + 2.0**-48 * np.abs(bound.value))
        claims.within(name, found[name], bound, "of halves that were merged")


def chain(case: Case, given: Inputs, parts: tuple[slice, slice]) -> dict[str, Approx]:
    """Return the outputs of merging in two steps, with their bounds."""
    on = machine(case.lse_dtype)

    def arithmetic(x: Approx) -> Approx:
        return replace(x, on=on)

    halves = [merge(exact(given.cleaned[x], on), exact(given.lses[x], on)) for x in parts]
    outs = stack([arithmetic(x.out.returned(case.dtype)) for x in halves])
    between = merge(outs, stack([x.lse for x in halves]))
    dlse = None if given.dlse is None else exact(given.dlse, on)
    douts, dlses = gradients(between, exact(given.dout, on), dlse)
    douts = arithmetic(douts.returned(case.dtype))
    back = [gradients(half, douts[i], dlses[i]) for i, half in enumerate(halves)]
    return {
        "out": between.out.returned(case.dtype),
        "lse": between.lse,
        "douts": concatenate([x[0] for x in back]).returned(case.dtype),
        "dlses": concatenate([x[1] for x in back]),
    }


def dead_part(subject: Subject, case: Case) -> None:
    """A part that attended nothing changes no bit, wherever it stands; its gradients are 0.

    Whatever its output holds, NaN or a number.
    """
    given = inputs(case)
    rng = np.random.default_rng(case.seed)
    at = int(rng.integers(0, case.parts + 1))
    before = subject.compute(case, given)
    for garbage in (np.nan, 1.0):
        more = given._replace(
            outs=np.insert(given.outs, at, garbage, axis=0),
            lses=np.insert(given.lses, at, -np.inf, axis=0),
        )
        after = subject.compute(replace(case, parts=case.parts + 1), more)
        for name in after.keys() & set(OF_PARTS):
            assert (after[name][at] == 0).all(), f"{name} of a part that attended nothing"
            after[name] = np.delete(after[name], at, axis=0)
        claims.same_bits(before, after, "with a part that attended nothing")


def nothing_attended(subject: Subject, case: Case) -> None:
    """Where no part attended anything, out is 0, lse −∞, and every gradient 0."""
    given = inputs(replace(case, dead=1.0))
    found = subject.compute(case, given)
    for name in ("out", "lse", *OF_PARTS):
        value = -np.inf if name == "lse" else 0.0
        assert (found[name] == value).all(), f"{name} where nothing is attended"


def shifted(subject: Subject, case: Case) -> None:
    """Adding a number to all lses moves lse by it and changes no other bit."""
    given = inputs(case)
    lses = np.round(16 * given.lses) / 16  # so that adding to it is exact
    first, second = (
        subject.compute(case, given._replace(lses=lses + shift)) for shift in (0.0, 8.0)
    )
    moved = given._replace(lses=lses + 8.0)
    bounds = [truth(case, x)["lse"] for x in (given._replace(lses=lses), moved)]
    lse, other = first["lse"] + np.float64(8.0), second["lse"]
    error = bounds[0].error + bounds[1].error
    value = np.where(np.isfinite(lse), lse, bounds[1].value)
    claims.within("lse", other, replace(bounds[1], value=value, error=error), "with lses 8 larger")
    del first["lse"], second["lse"]
    claims.same_bits(first, second, "with lses 8 larger")


def rows_apart(subject: Subject, case: Case) -> None:
    """Batches, heads and queries are independent: reversed, they give the same bits, reversed."""
    given = inputs(case)

    def turned(x: Array, first: int) -> Array:
        return np.flip(x, (first, first + 1, first + 2))

    other = Inputs(
        turned(given.outs, 1),
        turned(given.lses, 1),
        turned(given.dout, 0),
        None if given.dlse is None else turned(given.dlse, 0),
    )
    found = subject.compute(case, other)
    backwards = Outputs({n: turned(x, int(n in OF_PARTS)) for n, x in found.items()})
    claims.same_bits(subject.compute(case, given), backwards, "with its rows in reverse")


def nan_is_seen(subject: Subject, case: Case) -> None:
    """An lse of NaN makes its own query's output and lse NaN, and no others."""
    makes_nan(subject, case, np.nan)


def infinity_is_seen(subject: Subject, case: Case) -> None:
    """An lse of +∞, which no log-sum-exp can be, has the same effect as NaN."""
    makes_nan(subject, case, np.inf)


def makes_nan(subject: Subject, case: Case, what: float) -> None:
    """Check that an lse of `what` makes its own query's output and lse NaN, and no other."""
    given = inputs(case)
    rng = np.random.default_rng(case.seed + 1)
    s, *row = (int(rng.integers(0, n)) for n in given.lses.shape)
    expected = np.zeros(given.lses.shape[1:], bool)
    expected[tuple(row)] = True
    lses = given.lses.copy()
    lses[s, *row] = what
    outs = np.where(np.isnan(given.outs), 1.0, given.outs)
    found = subject.compute(case, given._replace(outs=outs, lses=lses))
    for name, where in (("out", expected[..., None]), ("lse", expected)):
        assert (np.isnan(found[name]) == where).all(), f"{name} with an lse of {what}"


def gradient_sums(subject: Subject, case: Case) -> None:
    """Σ douts = dout, Σ dlses = dlse, 0 where nothing is attended, and ⟨outs, douts⟩ = ⟨out, dout⟩.

    The weights of a query sum to 1; lse moves with all lses, and out does not; out is linear in
    outs.
    """
    given = inputs(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    attends = given.attends
    dlse = np.zeros(attends.shape) if given.dlse is None else given.dlse
    totals = {"douts": np.where(attends[..., None], given.dout, 0.0)}
    totals["dlses"] = np.where(attends, dlse, 0.0)
    for name, total in totals.items():
        x = found[name].astype(np.float64)
        error = bounds[name].error.sum(0) + 2.0**-50 * case.parts * np.abs(x).sum(0)
        claims.within(f"Σ {name}", x.sum(0), Approx(total, error, machine("float64")))
    claims.adjoint(found, bounds, given.dout, outs=("douts", given.cleaned))


def slopes(subject: Subject, case: Case) -> None:
    """Each gradient is a slope of ⟨out, dout⟩ + ⟨lse, dlse⟩; one is checked, at random."""
    case = replace(
        case, dtype="float32", magnitude="unit", dead=0.0, lse_scale=min(case.lse_scale, 10.0)
    )
    given, rng = inputs(case), np.random.default_rng(case.seed)
    found, bounds = subject.compute(case, given), truth(case, given)
    dlse = np.zeros(given.lses.shape[1:]) if given.dlse is None else given.dlse
    name = ("outs", "lses")[case.seed % 2]
    x = getattr(given, name)

    def value(at: Array) -> tuple[float, float]:
        there = given._replace(**{name: at})
        new, bound = subject.compute(case, there), truth(case, there)
        total = off = 0.0
        for output, gradient in (("out", given.dout), ("lse", dlse)):
            total += float((new[output].astype(np.float64) * gradient).sum())
            off += float((bound[output].error * np.abs(gradient)).sum())
        return total, off

    claims.slopes(
        value,
        x,
        2.0**-5 * rng.standard_normal(x.shape),
        lambda at: representable(at, "float32"),
        found[f"d{name}"],
        bounds[f"d{name}"].error,
        name,
    )


PROPERTIES: Mapping[str, Property] = {
    "order of parts": order_of_parts,
    "one part alone": one_part_alone,
    "merged halves": merged_halves,
    "dead part": dead_part,
    "nothing attended": nothing_attended,
    "shifted": shifted,
    "rows apart": rows_apart,
    "NaN is seen": nan_is_seen,
    "infinity is seen": infinity_is_seen,
    "gradient sums": gradient_sums,
    "slopes": slopes,
}
