"""The domain of attention's weights, and its bound; `attention_weights` makes the contract.

A case is one of attention (`attention_domain`) without dropout and gradients, and an lse, which is
an input here: the float32 numbers handed in are exact, whatever they are the lse of. The bound
follows the kernel's steps in running error analysis (`rounding.Approx`):

(1) Scores in base 2, t ± E_t: those of attention (`attention_problem.scores`).
(2) p = exp2(t − lse·log₂e): log₂e is a rounded constant, the product and the difference round, and
    exp2 errs by `u_function` and passes on its argument's error. It is step (5) of attention,
    without an error of lse. Where a query may not attend, or its lse is −∞, p is 0 and exact.
(3) received = Σ_i p_ij: at most M − 1 additions, in any order, of nonnegative numbers; adding a
    weight that is 0 rounds nothing.

Nothing is cast: both outputs are float32.

`B` batch, `H` heads, `M` queries, `R` of them looked at, `N` keys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from twofold.core.ops import Side
from twofold.core.verify import domains
from twofold.core.verify.attention_problem import exp2, folded, scores
from twofold.core.verify.contracts import attention_domain
from twofold.core.verify.contracts.attention_domain import place, statistics
from twofold.core.verify.contracts.attention_packed import pack_approx
from twofold.core.verify.rounding import Approx, exact
from twofold.kernels.attention_weights_tiles import ENTRIES
from twofold.reference import attention
from twofold.reference.attention_scores import unpack

Array = domains.Array

LSES = ("true", "moved", "lost")
# Options of attention that reach its weights only through lse, or not at all.
APART = ("sinks", "dropout_p", "seed")


@dataclass(frozen=True)
class Case(attention_domain.Case):
    """A case of attention, the lse that it is given, and the queries whose weights are taken.

    The lse is the case's own ("true"), another one of about its size ("moved"), or −∞ for some
    queries that do attend to keys ("lost"). Weights are those of `queries` queries, all if None,
    from number `first_row` modulo M on.
    """

    lse: str = "true"
    first_row: int = 0
    queries: int | None = None

    @property
    def rows(self) -> slice | None:
        """The queries whose weights are taken."""
        if self.queries is None:
            return None
        first = self.first_row % self.seqlen_q
        return slice(first, first + self.queries)


class Inputs(NamedTuple):
    """The inputs of the call of attention, and an lse (B, H, M) held exactly in its own dtype."""

    call: attention_domain.Inputs
    lse: Array

    def of_batches(self, case: Case) -> Array:
        """The lse, with a batch for each packed sequence."""
        return unpack(self.lse, self.call.cu_seqlens_q, case.seqlen_q)


def inputs(case: Case) -> Inputs:
    """Make a case's arrays."""
    call = attention_domain.inputs(case)
    options = attention_domain.options(case, call)
    with np.errstate(all="ignore"):
        _, cache = attention.forward(call.q, call.k, call.v, **options._asdict())
    lse, rng = cache.lse, np.random.default_rng(case.seed)
    if case.lse == "moved":
        lse = lse + rng.standard_normal(lse.shape)
    if case.lse == "lost":
        lse = np.where(rng.random(lse.shape) < 0.4, -np.inf, lse)
    return Inputs(call, domains.representable(lse, statistics(case)))


def run(side: Side, case: Case, given: Inputs | None = None) -> dict[str, Any]:
    """Compute the case on a side, on its own inputs or on those `given`."""
    given = given or inputs(case)
    how = attention_domain.placed(side, case, given.call)._asdict()
    how = {name: x for name, x in how.items() if name not in APART}
    if side.name != "reference":
        how["allow_tf32"] = case.allow_tf32
    how |= domains.entry(side, case, ENTRIES)
    q, k = (place(side, x, case) for x in (given.call.q, given.call.k))
    layout = "transposed" if case.layout == "heads inside" else case.layout
    lse = domains.place(side, given.lse, statistics(case), layout)
    return {
        "weights": side.attention_weights.weights(q, k, lse, rows=case.rows, **how),
        "received": side.attention_weights.received(q, k, lse, **how),
    }


def truth(case: Case, given: Inputs | None = None) -> dict[str, Approx]:
    """Return the outputs with their bounds."""
    given = given or inputs(case)
    x = attention_domain.problem(case, given.call)
    given_lse = given.of_batches(case)[..., None]
    on, known = x.q.on, given_lse > -np.inf  # (B, H, M, 1)
    rows = case.rows or slice(None)
    with np.errstate(all="ignore"):
        # (1) scores
        t, _ = scores(x)  # (B, H, M, N)
        # (2) weights
        lse = exact(np.where(known, given_lse, 0.0), on)
        p = exp2(t - lse * folded(1.0, on)).where(x.live & known)
        # (3) attention received
        received = pack_approx(p.sum(-2), given.call.cu_seqlens_k)
        stored = statistics(case)
        return {
            "weights": p[:, :, rows].returned(stored),
            "received": received.returned(stored),
        }


def small(case: Case) -> Case:
    """Return the case cut down to a size at which properties cost little."""
    cut = replace(
        attention_domain.small(case), packed=False
    )  # what holds of batches holds of packed sequences
    assert isinstance(cut, Case)
    return cut


def cases() -> st.SearchStrategy[Case]:
    """Return the operator's domain: that of attention, any lse, all queries or some."""

    def build(case: attention_domain.Case, **mine: Any) -> Case:
        return Case(**{**vars(case), "dropout_p": 0.0, "dlse": False, **mine})

    return st.builds(
        build,
        case=attention_domain.cases(),
        lse=st.sampled_from(LSES),
        first_row=st.integers(0, 70),
        queries=st.one_of(st.none(), st.none(), domains.lengths(70)),
    )
