"""Rotary positions in attention's contract: drawn, placed on a side, and their part in the bound.

A query or key is rotated in float32 and cast to its own dtype; from there on the bound is that of
attention to the rotated ones, which carry that error (`rotary.turn`; no cast is averaged here, as
each one is in many sums). The gradients of q and k are stored, read again, rotated back and stored
again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twofold.core.ops import Side
from twofold.core.verify.attention_problem import Problem
from twofold.core.verify.contracts.attention_packed import unpack_approx
from twofold.core.verify.contracts.rotary import turn
from twofold.core.verify.domains import Array, beside, representable
from twofold.core.verify.rounding import Approx, Machine, exact
from twofold.reference.rotary import Rotary

if TYPE_CHECKING:  # it imports this
    from twofold.core.verify.contracts.attention_domain import Case, Inputs

FORMS = ("half", "interleaved")
Turns = tuple[Array, Array, bool]  # cos, sin, interleaved


def drawn(rng: np.random.Generator, case: Case, given: Inputs) -> Rotary | None:
    """Draw angles: for some or all features, per batch or shared, k's own or those of q."""
    if case.rotary is None or case.head_dim < 2:
        return None
    most = case.head_dim // 2
    pairs = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))

    def tables(x: Array) -> tuple[Array, Array]:
        shape = (x.shape[0],)[: rng.integers(2)] + (x.shape[2], pairs)
        angle = rng.uniform(-np.pi, np.pi, shape)
        return representable(np.cos(angle), "float32"), representable(np.sin(angle), "float32")

    own = given.q.shape[2] != given.k.shape[2] or rng.random() < 0.5
    cos, sin = tables(given.q)
    k_cos, k_sin = tables(given.k) if own else (None, None)
    return Rotary(cos, sin, k_cos, k_sin, case.rotary == "interleaved")


def placed(side: Side, rotary: Rotary | None, case: Any, dtype: str) -> Rotary | None:
    """Return the angles on a side."""
    if rotary is None:
        return None
    cos, sin, k_cos, k_sin = (beside(side, x, case, dtype) for x in rotary[:4])
    return Rotary(cos, sin, k_cos, k_sin, rotary.interleaved)


def turned(x: Array, turns: Turns, on: Machine) -> Approx:
    """Return what attention reads of q or k."""
    cos, sin, interleaved = turns
    return replace(turn(exact(x, on), exact(cos, on), exact(sin, on), interleaved), fresh=None)


def turning(x: Problem, given: Inputs, on: Machine) -> Problem:
    """Return a call with the queries and keys that attention reads, stored as `on` stores them."""
    if given.rotary is None:
        return x
    q, k = (
        turned(a, by, on) for a, by in ((given.q, given.rotary.of_q), (given.k, given.rotary.of_k))
    )
    M, N = x.live.shape[2:]
    return x._replace(
        q=unpack_approx(q, given.cu_seqlens_q, M),
        k=unpack_approx(k, given.cu_seqlens_k, N),
    )


def turned_back(x: Approx, turns: Turns) -> Approx:
    """Return the gradient of q or k, given that of its rotated form; ∞ may become anything."""
    finite = np.isfinite(x.value)
    stored = Approx(np.where(finite, x.value, 0.0), np.where(finite, x.error, np.inf), x.on)
    cos, sin, interleaved = turns
    return turn(stored, exact(cos, x.on), exact(-sin, x.on), interleaved, Approx.returned)


def gradients(found: dict[str, Approx], given: Inputs) -> dict[str, Approx]:
    """Return the outputs with the gradients of q and k rotated back."""
    if given.rotary is None:
        return found
    return found | {
        "dq": turned_back(found["dq"], given.rotary.of_q),
        "dk": turned_back(found["dk"], given.rotary.of_k),
    }
