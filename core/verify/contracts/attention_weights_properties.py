"""What is true of any attention's weights: claims that need no reference.

Each compares what an implementation computed for one call with what it computed for another, or
with what mathematics says without an exponential. How far apart they may be is the derived bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Inapplicable, Property, Subject
from twofold.core.verify.contracts import attention_packed
from twofold.core.verify.contracts.attention_domain import scale, statistics
from twofold.core.verify.contracts.attention_not_numbers import padding_is_not_read
from twofold.core.verify.contracts.attention_sample import full_live, last_batch, permuted_heads
from twofold.core.verify.contracts.attention_weights_domain import (
    Case,
    Inputs,
    inputs,
    run,
    truth,
)
from twofold.core.verify.domains import representable
from twofold.core.verify.rounding import Approx, Array, machine
from twofold.core.verify.units import half_unit
from twofold.kernels.attention_weights_tiles import ENTRIES


def sums(subject: Subject, case: Case) -> None:
    """With its own lse, a query's weights sum to 1, or to what its sink leaves of 1.

    What all keys receive then adds up to the number of queries that attend.
    """
    case = replace(case, lse="true", queries=None)
    given = inputs(case)
    attends = full_live(case, given.call).any(-1)  # (B, H, M)
    total = attends.astype(np.float64)
    if given.call.sinks is not None:
        total -= attends * np.exp(given.call.sinks[:, None] - given.lse)
    found, bounds = subject.compute(case, given), truth(case, given)
    moved = by_rounding(given.lse, case) * attends
    for name, x, error, value in (
        ("Σ weights", found["weights"], moved, total),
        ("Σ received", found["received"], moved.sum(-1), total.sum(-1)),
    ):
        error = error + bounds[name[2:]].error.sum(-1)
        bound = Approx(np.asarray(value), error, machine("float64"))
        claims.within(name, x.astype(np.float64).sum(-1), bound)


def equal_keys(subject: Subject, case: Case) -> None:
    """A query of zeros gives each of its n keys the weight 1/n."""
    case = replace(bare(case), lse="true", queries=None)
    given = inputs(case)
    live = full_live(case, given.call)
    count = live.sum(-1)  # (B, H, M)
    with np.errstate(divide="ignore"):
        lse = representable(np.log(count), statistics(case))
    zero = Inputs(given.call._replace(q=np.zeros_like(given.call.q)), lse)
    p = live / np.maximum(count, 1)[..., None]  # (B, H, M, N)
    moved = p * by_rounding(lse, case)[..., None]
    found, bounds = subject.compute(case, zero), truth(case, zero)
    for name, value, error in (("weights", p, moved), ("received", p.sum(-2), moved.sum(-2))):
        bound = replace(bounds[name], value=value, error=bounds[name].error + error)
        claims.within(name, found[name], bound, "of equal keys")


def unattended(subject: Subject, case: Case) -> None:
    """A pair that is masked or whose query has lse −∞ has weight 0; such weights sum to 0."""
    given = inputs(case)
    live = full_live(case, given.call) & (given.lse > -np.inf)[..., None]
    found = subject.compute(case, given)
    rows = case.rows or slice(None)
    weights, received = found["weights"], found["received"]
    assert (weights[~live[:, :, rows]] == 0).all(), "a pair has a weight that does not attend"
    assert (received[~live.any(-2)] == 0).all(), "a key receives attention though nobody attends"


def own_pair(subject: Subject, case: Case) -> None:
    """A weight depends on its own query and key alone: others change no bit of it."""
    case = replace(case, queries=None)
    given = inputs(case)
    k, q, lse = given.call.k.copy(), given.call.q.copy(), given.lse.copy()
    k[:, :, -1], q[:, :, 0] = -k[:, :, -1], -q[:, :, 0]
    lse[:, :, 0] += 1.0
    before = subject.compute(case, given)
    after = subject.compute(case, given._replace(call=given.call._replace(k=k)))
    others = {name: x[..., :-1] for name, x in before.items()}
    claims.same_bits(others, {n: x[..., :-1] for n, x in after.items()}, "with another last key")
    after = subject.compute(case, Inputs(given.call._replace(q=q), lse))
    first, second = ({"weights": x["weights"][:, :, 1:]} for x in (before, after))
    claims.same_bits(first, second, "with another first query")


def columns(subject: Subject, case: Case) -> None:
    """What a key receives is the sum of its weights."""
    case = replace(case, queries=None)
    given = inputs(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    summed = found["weights"].astype(np.float64).sum(-2)
    # The roundings of the float64 sum taken here.
    slack = case.seqlen_q * 2.0**-53 * np.abs(summed)
    bound = replace(bounds["received"], error=bounds["received"].error + slack)
    claims.agree("received", summed, found["received"], bound, "beside the sum of the weights")


def some_queries(subject: Subject, case: Case) -> None:
    """The weights of some queries are those they have among all."""
    given = inputs(case)
    some = replace(case, queries=case.queries or 1 + case.seed % case.seqlen_q)
    among = subject.compute(replace(case, queries=None), given)["weights"][:, :, some.rows]
    found = subject.compute(some, given)["weights"]
    assert found.shape == among.shape, f"weights have shape {found.shape}, not {among.shape}"
    claims.agree("weights", among, found, truth(some, given)["weights"], "by themselves")


def moved_lse(subject: Subject, case: Case) -> None:
    """Adding a number to lse divides the weights by its exponential."""
    given = inputs(case)
    other = given._replace(lse=representable(given.lse + 0.75, statistics(case)))
    with np.errstate(invalid="ignore"):
        factor = np.where(given.lse > -np.inf, np.exp(given.lse - other.lse), 0.0)  # (B, H, M)
    found, after = (subject.compute(case, x)["weights"] for x in (given, other))
    first, second = (truth(case, x)["weights"] for x in (given, other))
    factor = factor[:, :, case.rows or slice(None), None]
    value = found.astype(np.float64) * factor
    bound = replace(second, value=value, error=second.error + first.error * factor)
    claims.within("weights", after, bound, "with another lse")


def batch_alone(subject: Subject, case: Case) -> None:
    """An element of a batch gives the same bits alone as among others."""
    case = replace(bare(case), batch=max(case.batch, 2))
    given = inputs(case)
    among = {name: x[-1:] for name, x in subject.compute(case, given).items()}
    alone = Inputs(last_batch(given.call), given.lse[-1:])
    found = subject.compute(replace(case, batch=1), alone)
    claims.same_bits(among, found, "alone in its batch")


def sequence_alone(subject: Subject, case: Case) -> None:
    """A packed sequence has the same weights as alone, and 0 where it has no pair."""
    # A function of the scores is told the number of the sequence.
    case = replace(case, packed=True, batch=max(case.batch, 2), queries=None, score_mod=None)
    given = inputs(case)
    found, call = subject.compute(case, given), given.call
    for s in range(case.batch):
        one, own = attention_packed.alone(case, call, s)
        assert isinstance(one, Case)
        m, n = one.seqlen_q, one.seqlen_k
        weights = found["weights"][s : s + 1]
        rest = weights.copy()
        rest[:, :, :m, :n] = 0
        assert (rest == 0).all(), "there are weights where there is no pair"
        rows, keys = attention_packed.places(call, s)
        mine = {"weights": weights[:, :, :m, :n], "received": found["received"][:, :, keys]}
        if not m:
            assert (mine["received"] == 0).all(), "keys receive attention that nobody gives"
        if m and n:
            by_itself = Inputs(own, given.lse[:, :, rows])
            theirs, bounds = subject.compute(one, by_itself), truth(one, by_itself)
            for name, x in mine.items():
                claims.agree(name, x, theirs[name], bounds[name], f"of sequence {s} by itself")


def grouped_heads(subject: Subject, case: Case) -> None:
    """Heads that share keys give what they would with a copy each."""
    if case.groups == 1:
        raise Inapplicable("every head has keys of its own")
    given = inputs(case)
    own = given._replace(call=given.call._replace(k=given.call.k.repeat(case.groups, axis=1)))
    apart = subject.compute(replace(case, groups=1), own)
    found, bounds = subject.compute(case, given), truth(case, given)
    for name, bound in bounds.items():
        claims.agree(name, found[name], apart[name], bound, "with keys repeated for every head")


def powers_of_two(subject: Subject, case: Case) -> None:
    """Powers of two pass exactly: 2q with half the scale gives the same bits."""
    case = replace(bare(case), softmax_scale=scale(case), magnitude="unit")
    given = inputs(case)
    half = replace(case, softmax_scale=scale(case) / 2)
    twice = given._replace(call=given.call._replace(q=2 * given.call.q))
    before, after = subject.compute(case, given), subject.compute(half, twice)
    claims.same_bits(before, after, "with 2q and half the scale")


def bare(case: Case) -> Case:
    """Return the case whose scores are plain products and whose heads share no keys."""
    return replace(case, groups=1, softcap=None, score_mod=None, alibi=None, bias=None, sinks=False)


def by_rounding(lse: Array, case: Case) -> Array:
    """Return by what share of itself the rounding of lse moves a weight."""
    finite = np.where(np.isfinite(lse), np.abs(lse), 0.0)
    return np.expm1(half_unit(finite, machine(statistics(case)).u))


PROPERTIES: Mapping[str, Property] = {
    "sums": sums,
    "equal keys": equal_keys,
    "unattended": unattended,
    "own pair": own_pair,
    "columns": columns,
    "some queries": some_queries,
    "moved lse": moved_lse,
    "permuted heads": permuted_heads(inputs, bare),
    "batch alone": batch_alone,
    "sequence alone": sequence_alone,
    "grouped heads": grouped_heads,
    "powers of two": powers_of_two,
    "other strides": claims.other_strides(inputs, truth, "heads inside"),
    "other tiles": claims.other_tiles(inputs, truth, ENTRIES, domains.holds_features),
    "padding is not read": padding_is_not_read(inputs, "k"),
    "NaN is seen": not_numbers.seen(inputs, run, across=2),
}
