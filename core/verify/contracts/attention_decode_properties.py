"""What is true of any decoding with a cache: claims that need no reference.

Each compares what an implementation computed for one call with what it computed for another, or
with what mathematics says without a softmax. That a sequence does not depend on others in its
batch, that its pages may lie anywhere, and that nothing else is ever read are claims about bits.
Where sums have another order, the derived bound says how far apart the results may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.verify import claims, not_numbers
from twofold.core.verify.contract import Inapplicable, Property, Subject
from twofold.core.verify.contracts import attention_domain as attention
from twofold.core.verify.contracts.attention_decode_bound import own, truth
from twofold.core.verify.contracts.attention_decode_domain import (
    Case,
    Inputs,
    inputs,
    of_nothing,
    run,
    spare,
    table,
    whole,
)
from twofold.core.verify.contracts.attention_properties import SATURATING, clipped
from twofold.core.verify.contracts.attention_scoring import SQUASHED
from twofold.core.verify.domains import representable
from twofold.core.verify.rounding import Approx, Array
from twofold.reference.attention_scores import Options, pack

AXES = ("bias", "mask", "block_mask")  # what may have axes of sequences, heads, queries and keys
OTHER_PAGES = (1, 4, 7, 16)
OTHER_SPLITS = (1, 5, 16, 64)


def pages_or_none(subject: Subject, case: Case) -> None:
    """Keys in pages of any size give the same bits as the same keys in one piece."""
    case = replace(case, layout="contiguous")  # as pages put together are
    size = OTHER_PAGES[case.seed % len(OTHER_PAGES)]
    pages = replace(case, page_size=size if size != case.page_size else 3)
    there = inputs(pages)
    given = there._replace(table=None)
    found = subject.compute(pages, there)
    claims.same_bits(subject.compute(replace(case, page_size=0), given), found, "in pages")


def permuted_pages(subject: Subject, case: Case) -> None:
    """Where the pages lie changes no bit."""
    case = replace(case, page_size=case.page_size or 4)
    given = inputs(case)
    other = given._replace(table=table(case, given.lengths, case.seed + 1))
    what = "with its pages in other places"
    claims.same_bits(subject.compute(case, given), subject.compute(case, other), what)


def pages_outside(subject: Subject, case: Case) -> None:
    """A page outside the cache gives NaN to queries that attend to it, and disturbs no other."""
    if subject.name == "reference":
        raise Inapplicable("the reference refuses it")
    M, size = max(case.queries, 2), case.page_size or 1
    case = replace(bare(case), batch=2, causal=True, queries=M, page_size=size)
    given = inputs(case)
    b = int(given.lengths[1] > 0)  # a sequence that has a page, unless neither does
    length = int(given.lengths[b])
    last = max(length - 1, 0) // size
    attends = np.zeros((2, M), bool)
    attends[b] = (length > 0) & (length - M + np.arange(M) >= last * size)
    assert given.table is not None
    bad = given.table.copy()
    bad[b, last] = -1 if case.seed % 2 else bad.size + spare(case)
    found, expected = (subject.compute(case, given._replace(table=x)) for x in (bad, given.table))
    for name in ("out", "lse"):
        there, before = (x[name].swapaxes(1, 2) for x in (found, expected))  # (B, M, H, …)
        assert np.isnan(there[attends]).all(), f"{name} of a page that is not there is a number"
        kept = np.array_equal(there[~attends], before[~attends])
        assert kept, f"a page that is not there disturbs {name} of others"


def alone(subject: Subject, case: Case) -> None:
    """A sequence alone, with no more room than it needs, gives the same bits as among others."""
    alone_in_parts(subject, case)
    with suppress(Inapplicable):  # implementations without parts
        alone_in_parts(subject, replace(case, split=4))


def alone_in_parts(subject: Subject, case: Case) -> None:
    """Hold the case to the property above, with its parts as they are."""
    case = replace(case, batch=max(case.batch, 2))
    given = inputs(case)
    among = subject.compute(case, given)
    for b in {0, case.batch - 1}:
        room = max(int(given.lengths[b]), 1)
        one = replace(case, batch=1, capacity=room)
        x, mine = given.call, own(case, given, b, case.queries)
        turns = x.rotary
        if turns is not None and turns.cos.ndim == 3:
            turns = turns._replace(cos=turns.cos[b : b + 1], sin=turns.sin[b : b + 1])
        if not given.queries(b):
            continue
        here = given.having(
            q=given.of(x.q, b),
            k=x.k[b : b + 1, :, :room],
            v=x.v[b : b + 1, :, :room],
            key_lengths=mine.key_lengths,
            alibi_slopes=mine.alibi_slopes,
            bias=mine.bias,
            mask=mine.mask,
            block_mask=mine.block_mask,
            rotary=turns,
        )
        own_starts = None if given.starts is None else np.array([0, given.queries(b)], np.int32)
        here = here._replace(table=table(one, here.lengths, case.seed), starts=own_starts)
        if case.score_mod is not None and b:
            raise Inapplicable("a function of the scores may look at the sequence's number")
        if case.dropout_p > 0.0 and b:
            raise Inapplicable("a dropout mask belongs to the sequence's number")
        theirs = {name: given.of(y, b) for name, y in among.items()}
        claims.same_bits(theirs, subject.compute(one, here), f"when sequence {b} is alone")


def packed_or_not(subject: Subject, case: Case) -> None:
    """Packed queries give the same bits as the same queries with a batch for each sequence."""
    case = replace(case, packed=False, layout="contiguous")  # as packed ones are
    given = inputs(case)
    starts = np.arange(case.batch + 1, dtype=np.int32) * case.queries
    other = given.having(q=pack(given.call.q, starts))._replace(starts=starts)
    found = {name: pack(x, starts) for name, x in subject.compute(case, given).items()}
    packed = subject.compute(replace(case, packed=True), other)
    claims.same_bits(found, packed, "with its queries packed")


def unread(subject: Subject, case: Case) -> None:
    """Whatever lies after a sequence's last key, NaN or numbers, changes no bit."""
    case = replace(case, full=False)
    given = inputs(case)
    numbers = (np.nan_to_num(x, nan=3.0) for x in (given.call.k, given.call.v))
    other = given.having(**dict(zip("kv", numbers, strict=True)))
    what = "with numbers after the last key"
    claims.same_bits(subject.compute(case, given), subject.compute(case, other), what)


def causality(subject: Subject, case: Case) -> None:
    """With a causal mask, the keys of later queries change no bit of an earlier query."""
    case = replace(case, causal=True, queries=max(case.queries, 2), packed=False)
    given = inputs(case)
    at = case.seed % (case.queries - 1)  # the last query that must not see the change
    later = np.arange(case.capacity) > (given.lengths - case.queries + at)[:, None]  # (B, N)
    k, v = (
        np.where(later[:, None, :, None], f * x, x)
        for f, x in ((-1, given.call.k), (3, given.call.v))
    )
    first, second = (
        {name: x[:, :, : at + 1] for name, x in subject.compute(case, y).items()}
        for y in (given, given.having(k=k, v=v))
    )
    claims.same_bits(first, second, "with other later keys")


def step_by_step(subject: Subject, case: Case) -> None:
    """Several queries at once give what each gives alone, when its own key was the last."""
    case = replace(case, causal=True, queries=max(case.queries, 2), packed=False, dropout_p=0.0)
    if case.window_size is not None and case.window_size[1] is None:
        case = replace(case, window_size=(case.window_size[0], 0))
    given = inputs(case)
    bounds, at_once = truth(case, given), subject.compute(case, given)
    rows, columns = Options(block_size=case.block_size or 1).block
    one = replace(case, queries=1, block_size=case.block_size and (1, columns))
    for i in {0, case.queries // 2}:
        lengths = np.maximum(given.lengths - case.queries + 1 + i, 0)
        then = given.having(
            q=given.call.q[:, :, i : i + 1],
            key_lengths=lengths,
            bias=of_row(given.call.bias, i),
            mask=of_row(given.call.mask, i),
            block_mask=of_row(given.call.block_mask, i // rows),
        )
        found = subject.compute(one, then)
        for name, bound in ((n, x) for n, x in bounds.items() if n in found):
            mine, theirs = at_once[name][:, :, i : i + 1], found[name]
            claims.agree(name, mine, theirs, bound[:, :, i : i + 1], "of one query at a time")


def of_row(x: Array | None, i: int) -> Array | None:
    """Return a bias's or mask's row for one query."""
    return x if x is None or x.ndim < 2 or x.shape[-2] == 1 else x[..., i : i + 1, :]


def other_parts(subject: Subject, case: Case) -> None:
    """Keys split into parts of another length give the same results, within both bounds."""
    given = inputs(case)
    size = OTHER_SPLITS[case.seed % len(OTHER_SPLITS)]
    other = replace(case, split=size if size != case.split else None)
    first, second = subject.compute(case, given), subject.compute(other, given)
    bounds = truth(case, given), truth(other, given)
    for name, mine in ((n, x) for n, x in bounds[0].items() if n in first):
        error = mine.error + bounds[1][name].error
        value = np.where(np.isfinite(first[name]), first[name], mine.value).astype(np.float64)
        bound = replace(mine, value=value, error=error)
        claims.within(name, second[name], bound, f"in parts of {other.split}")


def saturation(subject: Subject, case: Case) -> None:
    """A key that outweighs all others by e⁴⁰⁰ is as if alone, on either side of any cut.

    So every key is in one part and only one.
    """
    case = bare(case)
    given, call = inputs(case), whole(case)
    scale = attention.scale(call)
    size = representable(np.sqrt(np.full(1, SATURATING / (scale * case.head_dim))), case.dtype)
    signs = np.random.default_rng(case.seed).random(case.head_dim) < 0.5
    direction = size * np.where(signs, -1, 1)
    q = np.broadcast_to(direction, given.call.q.shape)
    cut = case.split or case.capacity
    for at in sorted({0, cut - 1, cut, case.capacity - 1} & set(range(case.capacity))):
        k = np.where((np.arange(case.capacity) == at)[:, None], direction, -direction)
        k = np.where(np.isnan(given.call.k), np.nan, k)
        one = given.having(q=q, k=k)
        there = given.lengths > at  # (B,)
        out = np.repeat(given.call.v[:, :, at], case.groups, axis=1)[:, :, None]
        claimed = {
            "out": (np.broadcast_to(out, q.shape), there[:, None, None, None]),
            "lse": (np.full(q.shape[:3], scale * (direction @ direction)), there[:, None, None]),
        }
        check(subject, case, one, claimed, f"where key {at} outweighs all")


def equal_keys(subject: Subject, case: Case) -> None:
    """A query of zeros weighs all keys alike: out is the mean, lse the log of their number."""
    case = bare(case)
    given = inputs(case)
    zero = given.having(q=np.zeros_like(given.call.q))
    present = np.arange(case.capacity) < given.lengths[:, None]  # (B, N)
    v = np.where(present[:, None, :, None], given.call.v, 0.0)
    count = np.maximum(given.lengths, 1)
    mean = np.repeat(v.sum(-2) / count[:, None, None], case.groups, axis=1)[:, :, None]
    claimed = {
        "out": (np.broadcast_to(mean, zero.call.q.shape), given.lengths[:, None, None, None] > 0),
        "lse": (
            np.broadcast_to(np.log(count)[:, None, None], zero.call.q.shape[:3]),
            given.lengths[:, None, None] > 0,
        ),
    }
    check(subject, case, zero, claimed, "of equal keys")


def check(
    subject: Subject,
    case: Case,
    given: Inputs,
    claimed: Mapping[str, tuple[Array, Array]],
    what: str,
) -> None:
    """Raise unless outputs are these, within their bounds, wherever something is claimed."""
    found, bounds = subject.compute(case, given), truth(case, given)
    for name, (value, where) in ((n, x) for n, x in claimed.items() if n in found):
        bound = bounds[name]
        claims.within(
            name,
            found[name],
            Approx(np.where(where, value, 0.0), np.where(where, bound.error, np.inf), bound.on),
            what,
        )


def nothing_attended(subject: Subject, case: Case) -> None:
    """A query without keys gives 0 and −∞; so does a sequence that has none."""
    case = replace(case, sinks=False, mask=None, block_mask=None, block_size=None, packed=False)
    given = inputs(case)
    lengths = given.lengths.copy()
    lengths[-1] = 0
    given = given.having(key_lengths=lengths, sinks=None)
    if given.table is not None:
        given = given._replace(table=np.where(lengths[:, None] > 0, given.table, -1))
    found, dead = subject.compute(case, given), ~live(case, given)
    for name, value in (("out", 0.0), ("lse", -np.inf)):
        where = np.broadcast_to(dead[:, None], (case.batch, case.heads, case.queries))
        assert (found[name][where] == value).all(), f"{name} of a query without keys"


def live(case: Case, given: Inputs) -> Array:
    """Return which queries (B, M) have a key."""
    left, right = case.window_size or (None, None)
    right = 0 if case.causal else right
    position = given.lengths[:, None] - case.queries + np.arange(case.queries)  # (B, M)
    first = np.zeros_like(position) if left is None else np.maximum(position - left, 0)
    last = np.broadcast_to(given.lengths[:, None] - 1, position.shape)
    if right is not None:
        last = np.minimum(last, position + right)
    return np.asarray(first <= last)


def clipped_lengths(subject: Subject, case: Case) -> None:
    """A length below 0 counts as 0, one above the capacity as the capacity, bit for bit.

    A function of the scores is told the position, so that the length shows.
    """
    size = case.page_size or 1
    room = -(-case.capacity // size) * size
    case = replace(case, batch=2, capacity=room, full=True, score_mod=SQUASHED)
    for page_size in {0, case.page_size}:
        one = replace(case, page_size=page_size)
        clipped(subject, one, inputs(one).having, room)


def heads_apart(subject: Subject, case: Case) -> None:
    """Sequences and KV heads are independent: reversed, they give the same bits, reversed."""
    # Functions of the scores, and dropout, depend on the numbers of heads and sequences.
    case = replace(case, score_mod=None, packed=False, dropout_p=0.0)
    given, K = inputs(case), case.heads // case.groups

    def turned(a: Any, axis: int | None = 0) -> Any:
        """Reverse the heads of keys and the sequences; heads that share keys keep their order."""
        if a is None:
            return None
        if axis is not None:
            shape = a.shape
            a = a.reshape(*shape[:axis], K, -1, *shape[axis + 1 :])
            a = np.flip(a, axis).reshape(shape)
        return a if axis == 0 else np.flip(a, 0)

    def full(a: Array | None) -> Array | None:
        """Broadcast a bias, a mask or slopes to all sequences and heads."""
        if a is None:
            return None
        after = (1, 1, *a.shape)[-2:]
        return np.broadcast_to(a, (case.batch, case.heads, *after))

    slopes, turns = given.call.alibi_slopes, given.call.rotary
    if slopes is not None:
        slopes = np.broadcast_to(slopes, (case.batch, case.heads))
    if turns is not None and turns.cos.ndim == 3:
        turns = turns._replace(cos=turns.cos[::-1], sin=turns.sin[::-1])
    other = given.having(
        **{name: turned(getattr(given.call, name), 1) for name in "qkv"},
        **{name: turned(full(getattr(given.call, name)), 1) for name in AXES},
        key_lengths=turned(given.lengths, None),
        alibi_slopes=turned(slopes, 1),
        rotary=turns,
        sinks=turned(given.call.sinks, 0),
    )
    other = other._replace(table=turned(given.table, None))
    backwards = {name: turned(y, 1) for name, y in subject.compute(case, other).items()}
    what = "with sequences and heads of keys in reverse"
    claims.same_bits(subject.compute(case, given), backwards, what)


def bare(case: Case) -> Case:
    """Return the case in which every query attends to all keys, and scores are products."""
    return replace(
        case, causal=False, window_size=None, softcap=None, score_mod=None, alibi=None, bias=None,
        sinks=False, mask=None, block_mask=None, block_size=None, rotary=None, packed=False,
        dropout_p=0.0,
    )  # fmt: skip


PROPERTIES: Mapping[str, Property] = {
    "pages or none": pages_or_none,
    "permuted pages": permuted_pages,
    "pages outside": pages_outside,
    "alone": alone,
    "packed or not": packed_or_not,
    "unread": unread,
    "causality": causality,
    "step by step": step_by_step,
    "other parts": other_parts,
    "saturation": saturation,
    "equal keys": equal_keys,
    "nothing attended": nothing_attended,
    "clipped lengths": clipped_lengths,
    "heads apart": heads_apart,
    "other strides": claims.other_strides(inputs, truth, "heads inside"),
    "NaN is seen": not_numbers.seen(inputs, run, but=of_nothing, across=2),
}
