"""A few rows of a call of attention, with their bounds, against which properties hold an output.

The bounds of a few queries need no M×N matrix, and where `dout` is zero on all other queries, these
add exactly zero to dk and dv, whose bounds are then those of the few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from twofold.core.verify import attention_bound, claims
from twofold.core.verify.attention_bound import partnered
from twofold.core.verify.contract import Property, Subject
from twofold.core.verify.contracts.attention_domain import Case, Inputs, options, scale
from twofold.core.verify.rounding import Approx, Array, exact, machine
from twofold.reference.attention_scores import attended

C = TypeVar("C", bound=Case)

QUERIES = {"out", "lse", "dq"}  # outputs with an axis of queries
ALL = 64  # up to so many queries, all are taken
FEW = 5  # so many are drawn from more


class Sample:
    """All queries of a short call; the first, the last and some others of a long one.

    Attributes:
        rows: the queries' numbers, (R,).
        full_live: which pairs attend, (B, H, M, N).
        problem: the call with these queries, without dropout.
        attends: which of these queries have a key, (B, H, R, 1).
    """

    def __init__(self, case: Case, given: Inputs) -> None:
        M, on = case.seqlen_q, machine(case.dtype, case.allow_tf32)
        drawn = np.random.default_rng(case.seed).integers(0, M, FEW)
        self.rows = np.arange(M) if M <= ALL else np.unique([0, M - 1, *drawn])
        self.full_live = full_live(case, given)
        live = self.of(self.full_live)
        q, k, v = (exact(x, on) for x in (self.of(given.q), given.k, given.v))
        bias = given.bias
        if bias is not None and bias.ndim > 1 and bias.shape[-2] > 1:
            bias = bias[..., self.rows, :]
        self.problem = attention_bound.Problem(
            q, k, v, live, np.ones(live.shape), scale(case),
            options(case, given)._replace(bias=bias), self.rows, M,
        )  # fmt: skip
        self.attends = partnered(live)
        self._dout = exact(self.of(given.dout), on)
        self._queries = M

    @cached_property
    def forward(self) -> attention_bound.Forward:
        """The bounds of out (B, H, R, D) and lse (B, H, R, 1)."""
        return attention_bound.forward(self.problem)

    def backward(self) -> attention_bound.Backward:
        """The bounds of dq (B, H, R, D), and of dk, dv (B, H, N, D) where other rows' dout is 0."""
        no_dlse = exact(np.zeros(self.attends.shape), self._dout.on)
        return attention_bound.backward(self.problem, self.forward, self._dout, no_dlse)

    def of(self, x: Array) -> Array:
        """Take the sample's rows of (B, H, M, …)."""
        return np.asarray(x[:, :, self.rows])

    def spread(self, x: Array) -> Array:
        """Put the sample's rows (B, H, R, …) among zeros, (B, H, M, …)."""
        full = np.zeros((*x.shape[:2], self._queries, *x.shape[3:]), x.dtype)
        full[:, :, self.rows] = x
        return full

    def sparse(self, given: Inputs) -> Inputs:
        """Return the inputs with dout zero on all other rows, and no gradient of lse."""
        return given._replace(dout=self.spread(self._dout.value), dlse=None)

    def check_forward(
        self, found: Mapping[str, Array], out: Array, lse: Array | None, rows_only: bool = False
    ) -> None:
        """Raise unless out and lse are these; NaN, or a row without keys, claims nothing.

        `rows_only` says that `out` and `lse` hold only the sample's rows.
        """
        bounds = {"out": self.forward.out, "lse": self.forward.lse[..., 0]}
        for name, value in (("out", out), ("lse", lse)):
            if value is None or name not in found:
                continue
            value = value if rows_only else self.of(value)
            attends = self.attends if name == "out" else self.attends[..., 0]
            claimed = attends & ~np.isnan(value)
            bound = replace(
                bounds[name],
                value=np.where(claimed, value, 0.0),
                error=np.where(claimed, bounds[name].error, np.inf),
            )
            claims.within(name, self.of(found[name]), bound)

    def check_agree(
        self, first: Mapping[str, Array], second: Mapping[str, Array], what: str
    ) -> None:
        """Raise unless the results of two calls with `sparse` inputs agree within the bounds."""
        bounds: dict[str, Approx] = {"out": self.forward.out, "lse": self.forward.lse[..., 0]}
        if "dq" in first:
            bounds |= self.backward()._asdict()
        for name in first.keys() & second.keys():
            one, two = first[name], second[name]
            if name in QUERIES:
                one, two = self.of(one), self.of(two)
            claims.agree(name, one, two, bounds[name], what)


def plain(case: C) -> C:
    """Return the case without what does not carry over to other calls: dropout, a gradient of lse.

    Nor is it packed or rotary: what holds of batches holds of packed sequences, and what holds of
    all queries and keys holds of rotated ones.
    """
    return replace(case, dropout_p=0.0, dlse=False, packed=False, rotary=None)


def unmasked(case: C) -> C:
    """Return the bare case in which every query attends to every key."""
    return replace(
        bare(case), causal=False, window_size=None, mask=None, key_lengths=False,
        block_mask=None, block_size=None,
    )  # fmt: skip


def bare(case: C) -> C:
    """Return the plain case whose scores are plain products and whose heads share no keys."""
    return replace(
        plain(case), groups=1, softcap=None, score_mod=None, alibi=None, bias=None, sinks=False
    )


def as_padded(case: C) -> C:
    """Return the packed case, changed so that its bits are those of its padded batches.

    See attention's property "packed is padded".
    """
    case = replace(
        case, causal=case.causal and "top-left", mask=case.mask or "", layout="contiguous",
        head_dim=max(case.head_dim, 2),
    )  # fmt: skip
    if not case.causal:
        case = replace(case, window_size=None, alibi=None)
    return case


def full_live(case: Case, given: Inputs) -> Array:
    """Return which pairs attend, (B, H, M, N), as a view where the mask is broadcast."""
    pairs = (case.batch, case.heads, case.seqlen_q, case.seqlen_k)
    live = attended(pairs, options(case, given))
    return np.broadcast_to(True if live is None else live, pairs)


def outer(mask: Array | None) -> int:
    """Return how many axes of batches and heads a mask has."""
    return 0 if mask is None else max(0, mask.ndim - 2)


def permuted_heads(inputs: Callable[[Any], Any], alike: Callable[[Any], Any]) -> Property:
    """Return the property that no batch or head affects another.

    Args:
        inputs: the contract's: those of a call, or its `call` and arrays (B, H, …).
        alike: the case without what belongs to a place, as a dropout mask does.
    """

    def permuted_heads(subject: Subject, case: Any) -> None:
        """Batches and heads are independent: reversed inputs give the same bits, reversed."""
        case = alike(case)
        given = inputs(case)
        other = _flipped_call(given) if isinstance(given, Inputs) else _flipped_all(given)
        backwards = {name: _flipped(x) for name, x in subject.compute(case, other).items()}
        what = "with batches and heads in reverse"
        claims.same_bits(subject.compute(case, given), backwards, what)

    return permuted_heads


def _flipped(x: Array | None, axes: int = 2) -> Any:
    """Return an array with its batches and heads in reverse."""
    return None if x is None else np.flip(x, tuple(range(axes)))


def _flipped_call(given: Inputs) -> Inputs:
    """Return the inputs of a bare call with its batches and heads in reverse."""
    return given._replace(
        **{name: _flipped(getattr(given, name)) for name in ("q", "k", "v", "dout", "dlse")},
        mask=_flipped(given.mask, outer(given.mask)),
        block_mask=_flipped(given.block_mask, outer(given.block_mask)),
        key_lengths=_flipped(given.key_lengths, 1),
    )


def _flipped_all(given: Any) -> Any:
    return type(given)(_flipped_call(given.call), *(_flipped(x) for x in given[1:]))


def last_batch(given: Inputs) -> Inputs:
    """Return the inputs of a bare call that are its last batch's."""

    def own(mask: Array | None) -> Array | None:
        return mask[-1:] if mask is not None and mask.ndim == 4 else mask

    return given._replace(
        q=given.q[-1:],
        k=given.k[-1:],
        v=given.v[-1:],
        dout=given.dout[-1:],
        dlse=None if given.dlse is None else given.dlse[-1:],
        mask=own(given.mask),
        block_mask=own(given.block_mask),
        key_lengths=None if given.key_lengths is None else given.key_lengths[-1:],
    )
