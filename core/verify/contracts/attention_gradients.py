"""What is true of the gradients of any attention; see `attention_properties`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.verify import claims
from twofold.core.verify.contract import Subject
from twofold.core.verify.contracts.attention_domain import Case, inputs
from twofold.core.verify.contracts.attention_sample import Sample, bare, plain
from twofold.core.verify.domains import representable
from twofold.core.verify.rounding import Approx, Array, machine


def sums(subject: Subject, case: Case) -> None:
    """Σ dv = Σ dout, Σ dk = 0 under equal shifts, ⟨v, dv⟩ = ⟨out, dout⟩, ⟨q, dq⟩ = ⟨k, dk⟩.

    The weights of a query sum to 1; a vector added to all keys changes no weight; out is linear in
    v; and the scores are linear in q and in k alike.
    """
    case = bare(case)
    given = inputs(case)
    sample = Sample(case, given)
    sparse = sample.sparse(given)
    found, bound = subject.compute(case, sparse), sample.backward()
    dq, dk, dv, out = found["dq"], found["dk"], found["dv"], found["out"]
    live = sample.spread(sample.attends)
    for h in range(case.heads):
        for name, x, error, total in (
            ("dv", dv, bound.dv.error, (sparse.dout * live)[:, h].sum(-2)),
            ("dk", dk, bound.dk.error, np.zeros(case.head_dim)),
        ):
            y, e = x[:, h].astype(np.float64).sum(-2), error[:, h].sum(-2)
            e = e + 2.0**-50 * np.abs(x[:, h]).sum(-2)
            value = Approx(np.broadcast_to(total, y.shape), e, machine("float64"))
            claims.within(f"Σ {name}", y, value)
    out_error = sample.spread(sample.forward.out.error)
    claims.products(
        "⟨v, dv⟩ is not ⟨out, dout⟩",
        (dv, given.v, bound.dv.error),
        (np.where(live, out, 0.0), sparse.dout, np.where(live, out_error, 0.0)),
    )
    dq_error = sample.spread(bound.dq.error)
    claims.products(
        "⟨q, dq⟩ is not ⟨k, dk⟩", (dq, given.q, dq_error), (dk, given.k, bound.dk.error)
    )


def shifted_values(subject: Subject, case: Case) -> None:
    """Adding one vector to all values moves out by it and changes neither dq nor dk."""
    case = replace(bare(case), magnitude="unit")
    given = inputs(case)
    v = np.round(given.v * 16) / 16  # so that the sum is exact in every dtype
    found, bounds = [], []
    for shift in (0.0, 1.0):
        moved = given._replace(v=v + shift)
        sample = Sample(case, moved)
        found.append(subject.compute(case, sample.sparse(moved)))
        bounds.append(sample.backward())
    for name in ("dq", "dk"):
        first, second = (sample.of(x[name]) if name == "dq" else x[name] for x in found)
        one, two = (getattr(bound, name) for bound in bounds)
        allowed = replace(one, value=first.astype(np.float64), error=one.error + two.error)
        claims.within(name, second, allowed, "with all values moved by 1")


def slopes(subject: Subject, case: Case) -> None:
    """Each gradient is a slope of ⟨out, dout⟩; one is checked, in a random direction."""
    case = replace(
        plain(case), dtype="float32", allow_tf32=False, magnitude="unit",
        logits=min(max(case.logits, 1e-2), 10.0),
    )  # fmt: skip
    given = inputs(case)
    sample = Sample(case, given)
    sparse, rng = sample.sparse(given), np.random.default_rng(case.seed)
    found, bound = subject.compute(case, sparse), sample.backward()
    name = "qkv"[case.seed % 3]
    error = sample.spread(bound.dq.error) if name == "q" else getattr(bound, f"d{name}").error
    x = getattr(sparse, name)

    def value(at: Array) -> tuple[float, float]:
        changed: dict[str, Any] = {name: at}
        there = sparse._replace(**changed)
        out = subject.compute(case, there)["out"].astype(np.float64)
        off = Sample(case, there).forward.out.error * np.abs(sample.of(sparse.dout))
        return float((out * sparse.dout).sum()), float(off.sum())

    claims.slopes(
        value,
        x,
        2.0**-5 * np.abs(x).max() * rng.standard_normal(x.shape),
        lambda at: representable(at, "float32"),
        found[f"d{name}"],
        error,
        name,
    )
