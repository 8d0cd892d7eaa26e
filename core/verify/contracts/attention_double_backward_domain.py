"""The domain of attention's double backward: cases, inputs, how a side runs them, their truth.

A case is one of attention (`attention_domain`), whose function of the scores, if any, has a second
derivative; its inputs include the gradients of dq, dk and dv. The bound is
`attention_double_backward_bound`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import attention_bound, domains
from twofold.core.verify.contracts import attention_domain, attention_rotary
from twofold.core.verify.contracts import attention_double_backward_bound as bound
from twofold.core.verify.contracts.attention_domain import Case, called, place, problem, small
from twofold.core.verify.contracts.attention_packed import (
    pack_approx,
    padded,
    repacked,
    unpack_approx,
)
from twofold.core.verify.contracts.attention_scoring import SMOOTH
from twofold.core.verify.rounding import Approx, exact
from twofold.kernels.attention_double_backward_tiles import ENTRIES

__all__ = ["Case", "Inputs", "cases", "inputs", "run", "small", "truth"]

Array = domains.Array


class Inputs(NamedTuple):
    """The inputs of the call of attention, and the gradients of its gradients."""

    call: attention_domain.Inputs
    ddq: Array
    ddk: Array
    ddv: Array


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    call, rng = attention_domain.inputs(case), np.random.default_rng((case.seed, 1))
    drawn = (domains.draw(rng, x.shape, "unit", case.dtype) for x in (call.q, call.k, call.v))
    return Inputs(call, *drawn)


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = domains.entry(side, case, ENTRIES)
    call = given.call
    _, cache = called(side, case, call)
    dlse = domains.beside(side, call.dlse, case, attention_domain.statistics(case))
    # Gradients that come from elsewhere need not be laid out as q and k are.
    second = (side.asarray(x, case.dtype) for x in given[1:])
    gradients = side.attention_double_backward.backward(
        *second, place(side, call.dout, case), cache, dlse, **how
    )
    return {n: x for n, x in gradients._asdict().items() if x is not None}


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given = given or inputs(case)
    call = given.call
    x, batches = problem(case, call), padded(case, call)
    dlse = np.zeros(batches.q.shape[:-1]) if batches.dlse is None else batches.dlse
    ddq, ddk, ddv = (exact(a, x.q.on) for a in given[1:])
    if call.rotary is not None:
        ddq = attention_rotary.turned(given.ddq, call.rotary.of_q, x.q.on)
        ddk = attention_rotary.turned(given.ddk, call.rotary.of_k, x.q.on)
    ddq = unpack_approx(ddq, call.cu_seqlens_q, case.seqlen_q)
    ddk, ddv = (unpack_approx(a, call.cu_seqlens_k, case.seqlen_k) for a in (ddk, ddv))
    rest = (exact(a, x.q.on) for a in (batches.dout, dlse[..., None]))
    found = bound.backward(x, attention_bound.forward(x), ddq, ddk, ddv, *rest)._asdict()
    found = {n: a for n, a in found.items() if n != "ddlse" or call.dlse is not None}
    found = repacked(found, call, pack_approx)
    return attention_rotary.gradients(found, call)


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain."""
    heads = ((1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (1, 2, 2), (1, 4, 2), (1, 3, 3))
    return attention_domain.calls(
        heads=st.sampled_from(heads),
        **attention_domain.features(SMOOTH),
        rotary=st.sampled_from([None, None, *attention_rotary.FORMS]),
        blocks=attention_domain.maybe_blocks(),
    ).map(affordable)


def affordable(case: Case) -> Case:
    """Return the case cut down to a size that the interpreter can afford: 24 products a pair."""
    return replace(
        case,
        seqlen_q=min(case.seqlen_q, 37),
        seqlen_k=min(case.seqlen_k, 43),
        head_dim=min(case.head_dim, 256 // (case.batch * case.heads)),
    )
