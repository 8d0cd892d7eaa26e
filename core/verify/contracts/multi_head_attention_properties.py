"""What is true of any multi-head attention: claims about calls that must give the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from twofold.core.verify import claims, not_numbers
from twofold.core.verify.contract import Property, Subject, compare
from twofold.core.verify.contracts.multi_head_attention_domain import Case, inputs, run, truth
from twofold.core.verify.rounding import Array


def context_of_its_own(subject: Subject, case: Case) -> None:
    """Self-attention is attention to x as the context, with the two gradients of x added."""
    case = replace(case, seqlen_k=None, fused=True)
    other = replace(case, seqlen_k=case.seqlen_q)
    own = inputs(case)
    given = own._replace(context=own.x)
    found = subject.compute(other, given)
    with np.errstate(all="ignore"):
        bounds, parts = truth(case), truth(other, given)
    for name in bounds.keys() - {"dx"}:
        fault = compare(name, found[name], bounds[name])[2]
        assert not fault, f"with itself for a context {fault}"
    dx = sum(found[name].astype(np.float64) for name in ("dx", "dcontext"))
    error = parts["dx"].error + parts["dcontext"].error + 2.0**-50 * np.abs(dx)
    fault = compare("dx", np.asarray(dx), replace(bounds["dx"], error=error))[2]
    assert not fault, f"with itself for a context {fault}"


def heads_apart(subject: Subject, case: Case) -> None:
    """The projections of heads, and of keys that they share, do not affect other heads."""
    given, D = inputs(case), case.head_dim
    first = np.arange(case.features) < case.groups * D
    packed = np.concatenate((first, *(np.arange(case.shared) < D,) * 2))
    w_qkv = np.where(packed[:, None], -2.0 * given.w_qkv, given.w_qkv)
    before, after = (subject.compute(case, x) for x in (given, given._replace(w_qkv=w_qkv)))
    for name, others in (("dw_qkv", ~packed), ("db_qkv", ~packed), ("dw_out", (..., ~first))):
        if name in before:
            same = np.array_equal(before[name][others], after[name][others], equal_nan=True)
            assert same, f"{name} of other heads sees the first"


def repeated_heads(subject: Subject, case: Case) -> None:
    """Sharing keys is like having equal key projections, with their gradients added."""
    shared = replace(case, groups=case.heads)
    own = replace(case, groups=1)
    given, E, G = inputs(shared), case.features, case.heads

    def repeated(x: Array) -> Array:
        heads = x[E:].reshape(2, 1, case.head_dim, *x.shape[1:]).repeat(G, axis=1)
        return np.concatenate((x[:E], heads.reshape(2 * E, *x.shape[1:])))

    def added(x: Array) -> Array:
        heads = x[E:].astype(np.float64).reshape(2, G, case.head_dim, *x.shape[1:]).sum(1)
        return np.concatenate((x[:E], heads.reshape(-1, *x.shape[1:])))

    biases = None if given.b_qkv is None else repeated(given.b_qkv)
    other = given._replace(w_qkv=repeated(given.w_qkv), b_qkv=biases)
    one, many = subject.compute(shared, given), subject.compute(own, other)
    with np.errstate(all="ignore"):
        bounds, others = truth(shared, given), truth(own, other)
    for name, bound in bounds.items():
        change = added if name in ("dw_qkv", "db_qkv") else np.asarray
        error = bound.error + change(others[name].error) + 2.0**-50 * np.abs(change(many[name]))
        found = replace(bound, value=np.asarray(change(many[name]), np.float64), error=error)
        claims.within(name, one[name], found, "with projections of their own")


PROPERTIES: Mapping[str, Property] = {
    "context of its own": context_of_its_own,
    "heads apart": heads_apart,
    "repeated heads": repeated_heads,
    "NaN is seen": not_numbers.seen(inputs, run, across=2),
}
