"""What is true of any attention, whatever its inputs: claims that need no reference.

Each compares what an implementation computed for one call with what it computed for another, or
with what mathematics says without a softmax. How far apart they may be comes from the derived bound
of a few rows (`attention_sample`), so that the claims work at any size. `attention_gradients` has
those about gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Inapplicable, Property, Subject
from twofold.core.verify.contracts import attention_gradients as gradients
from twofold.core.verify.contracts import attention_not_numbers
from twofold.core.verify.contracts.attention_domain import Case, Inputs, inputs, run, scale
from twofold.core.verify.contracts.attention_packed import alone, padded, places, repacked
from twofold.core.verify.contracts.attention_sample import (
    QUERIES,
    Sample,
    as_padded,
    bare,
    full_live,
    last_batch,
    permuted_heads,
    plain,
    unmasked,
)
from twofold.core.verify.rounding import Approx, exact, exp, log, machine, matmul
from twofold.kernels.attention_tiles import ENTRIES
from twofold.reference.attention_scores import pack

SATURATING = 200.0  # the others' weights, e^−400, are 0 in float32
PAST_32_BITS = 2**40  # a length


def single_key(subject: Subject, case: Case) -> None:
    """With one key the weights are 1: out = v, lse is the score, dv = Σ dout, dq = dk = 0."""
    one = replace(unmasked(case), seqlen_k=1)
    given = inputs(one)
    found, sample = subject.compute(one, given), Sample(one, given)
    v, score = given.v, scale(one) * np.einsum("bhmd,bhnd->bhm", given.q, given.k)
    sample.check_forward(found, np.broadcast_to(v, given.dout.shape), score)
    sparse = sample.sparse(given)
    found = subject.compute(one, sparse)
    if "dq" not in found:
        return
    dv = replace(sample.backward().dv, value=sparse.dout.sum(-2, keepdims=True))
    claims.within("dv", found["dv"], dv)
    # The output is v itself, so only the two sums of dP − Δ round.
    x = sample.problem
    dout = exact(sample.of(sparse.dout), x.q.on)
    delta = (dout * x.v).sum(-1, keepdims=True)
    ds = replace((matmul(dout, x.v.mT) - delta).stored(), value=np.zeros_like(delta.value))
    for name, gradient in (("dq", matmul(ds, x.k)), ("dk", matmul(ds.mT, x.q))):
        value = found[name] if name == "dk" else sample.of(found[name])
        claims.within(name, value, (gradient * x.scale).returned())


def saturation(subject: Subject, case: Case) -> None:
    """A key that outweighs all others by e⁴⁰⁰ is as if alone, wherever it stands."""
    case = bare(case)
    given = inputs(case)
    size = domains.representable(
        np.sqrt(np.full(1, SATURATING / (scale(case) * case.head_dim))), case.dtype
    )
    direction = size * np.where(np.random.default_rng(case.seed).random(case.head_dim) < 0.5, -1, 1)
    q = np.broadcast_to(direction, given.q.shape)
    for at in sorted({0, case.seqlen_k // 2, case.seqlen_k - 1}):
        k = np.where((np.arange(case.seqlen_k) == at)[:, None], direction, -direction)
        one = given._replace(q=q, k=np.broadcast_to(k, given.k.shape))
        sample = Sample(case, one)
        out = np.where(sample.full_live[..., at, None], given.v[:, :, at, None], np.nan)
        lse = np.full(given.q.shape[:-1], scale(case) * (direction @ direction))
        lse = np.where(sample.full_live[..., at], lse, np.nan)
        sample.check_forward(subject.compute(case, one), out, lse)


def equal_keys(subject: Subject, case: Case) -> None:
    """A query of zeros weighs its keys alike: out is the mean, lse the log of their number.

    Where all values are 1, so is the output.
    """
    case = bare(case)
    given = inputs(case)
    zero, ones = given._replace(q=np.zeros_like(given.q)), np.ones_like(given.v)
    sample = Sample(case, zero)
    live = sample.problem.live
    with np.errstate(all="ignore"):
        out = live @ given.v / live.sum(-1, keepdims=True)
        lse = np.log(live.sum(-1))
    sample.check_forward(subject.compute(case, zero), out, lse, rows_only=True)
    one = given._replace(v=ones)
    Sample(case, one).check_forward(subject.compute(case, one), np.ones_like(given.dout), None)


def hull(subject: Subject, case: Case) -> None:
    """The output is a weighted mean of values: no feature leaves the range of its values."""
    case = bare(case)
    given = inputs(case)
    sample, found = Sample(case, given), subject.compute(case, given)
    live, v = sample.problem.live[..., None], given.v[:, :, None]  # (B, H, R, N, 1)
    low, high = np.where(live, v, np.inf).min(-2), np.where(live, v, -np.inf).max(-2)
    out, error = sample.of(found["out"]).astype(np.float64), sample.forward.out.error
    outside = sample.attends & ~((out >= low - error) & (out <= high + error)) & (error < np.inf)
    assert not outside.any(), "out leaves the range of its values"


def masked_rows(subject: Subject, case: Case) -> None:
    """A query without keys gives 0, −inf and gradient 0; a key without queries gradient 0."""
    case = replace(case, groups=1, sinks=False, packed=False)
    given = inputs(case)
    found, live = subject.compute(case, given), full_live(case, given)
    no_keys, no_queries = ~live.any(-1), ~live.any(-2)
    for name, value in (("out", 0.0), ("lse", -np.inf), ("dq", 0.0)):
        if name in found:
            assert (found[name][no_keys] == value).all(), f"{name} of a query without keys"
    for name in found.keys() & {"dk", "dv"}:
        assert (found[name][no_queries] == 0.0).all(), f"{name} of a key without queries"


def clipped_lengths(subject: Subject, case: Case) -> None:
    """A length below 0 counts as 0, one above the number of keys as that, bit for bit."""
    case = replace(case, batch=2, key_lengths=True, packed=False)
    clipped(subject, case, inputs(case)._replace, case.seqlen_k)


def clipped(subject: Subject, case: Any, having: Callable[..., Any], room: int) -> None:
    """Raise unless out-of-range lengths of two sequences give the bits of the lengths they clip to.

    `having` makes the case's inputs with the `key_lengths` that it is given.
    """
    first, *others = (
        subject.compute(case, having(key_lengths=np.array(lengths)))
        # The low 32 bits of each are those of 1.
        for lengths in ((0, room), (-1, room + 1), (1 - PAST_32_BITS, 1 + PAST_32_BITS))
    )
    for other in others:
        claims.same_bits(first, other, "with lengths that no sequence has")


def batch_alone(subject: Subject, case: Case) -> None:
    """An element of a batch gives the same bits alone as among others."""
    case = replace(bare(case), batch=max(case.batch, 2), dlse=case.dlse)
    given = inputs(case)
    among = {name: x[-1:] for name, x in subject.compute(case, given).items()}
    alone = subject.compute(replace(case, batch=1), last_batch(given))
    claims.same_bits(among, alone, "alone in its batch")


def causality(subject: Subject, case: Case) -> None:
    """With a causal mask, the last key affects no query but the last."""
    case = replace(case, causal=True, packed=False)
    given = inputs(case)
    k, v = given.k.copy(), given.v.copy()
    k[..., -1, :], v[..., -1, :] = -k[..., -1, :], -v[..., -1, :]  # three times as much may be ∞
    first, second = (
        {name: x[:, :, : case.seqlen_q - 1] for name, x in found.items() if name in QUERIES}
        for found in (
            subject.compute(case, given),
            subject.compute(case, given._replace(k=k, v=v)),
        )
    )
    for name, x in first.items():
        assert np.array_equal(x, second[name], equal_nan=True), f"{name} sees a later key"


def powers_of_two(subject: Subject, case: Case) -> None:
    """Powers of two pass exactly: 4v gives 4·out, and 2q with half the scale the same out."""
    case = replace(plain(case), magnitude="unit", softmax_scale=scale(case))
    given = inputs(case)
    before = subject.compute(case, given)
    # Below the normal range a rounding is not relative: each of the five may be off by `tiny`.
    off = 5 * machine(case.dtype).tiny_storage
    larger = subject.compute(case, given._replace(v=4 * given.v))["out"].astype(np.float64)
    moved = np.abs(4.0 * before["out"].astype(np.float64) - larger)
    assert (~(moved > off)).all(), "out of 4v is not 4 times that of v"
    half = replace(case, softmax_scale=scale(case) / 2)
    after = subject.compute(half, given._replace(q=2 * given.q))
    same = {name: before[name] for name in before.keys() & {"out", "lse"}}
    claims.same_bits(same, after, "with 2q and half the scale")


def other_strides(subject: Subject, case: Case) -> None:
    """However q, k and v lie in memory, the results agree within their bounds."""
    case, other = plain(case), "contiguous" if case.layout != "contiguous" else domains.MIXED
    same_in(subject, case, replace(case, layout=other), f"laid out {other}")


def other_tiles(subject: Subject, case: Case) -> None:
    """Another tile of the table does as well: the results agree within their bounds."""
    case = plain(case)
    fitting = [i for i, ((_, _, d), _) in enumerate(ENTRIES) if d >= case.head_dim]
    other = replace(case, tile=fitting[case.seed % len(fitting)])
    same_in(subject, case, other, f"with {ENTRIES[other.tile or 0][1]}")


def same_in(subject: Subject, case: Case, other: Case, what: str) -> None:
    """Raise unless two cases with one truth give results within its bound of each other."""
    sample, given = sparse_call(case)
    sample.check_agree(subject.compute(case, given), subject.compute(other, given), what)


def sparse_call(case: Case) -> tuple[Sample, Inputs]:
    """Return a case's sample, and inputs whose dout is zero on all other rows."""
    given = inputs(case)
    sample = Sample(case, given)
    return sample, sample.sparse(given)


def reordered_keys(subject: Subject, case: Case) -> None:
    """A softmax does not depend on the order of its keys: reversed, they give the same output."""
    case = unmasked(case)
    sample, given = sparse_call(case)
    turned = given._replace(k=given.k[:, :, ::-1], v=given.v[:, :, ::-1])
    first, second = subject.compute(case, given), subject.compute(case, turned)
    for name in second.keys() & {"dk", "dv"}:
        second[name] = second[name][:, :, ::-1]
    sample.check_agree(first, second, "with the keys in reverse")


def reordered_queries(subject: Subject, case: Case) -> None:
    """Queries are independent: reversed, they give the same outputs, reversed."""
    case = unmasked(case)
    sample, given = sparse_call(case)
    turned = given._replace(q=given.q[:, :, ::-1], dout=given.dout[:, :, ::-1])
    first, second = subject.compute(case, given), subject.compute(case, turned)
    for name in second.keys() & QUERIES:
        second[name] = second[name][:, :, ::-1]
    sample.check_agree(first, second, "with the queries in reverse")


def repeated_keys(subject: Subject, case: Case) -> None:
    """Repeating every key halves the weights: the output stays the same, lse grows by ln 2."""
    case = unmasked(case)
    given = inputs(case)
    twice = replace(case, seqlen_k=2 * case.seqlen_k)
    doubled = given._replace(k=np.tile(given.k, (1, 1, 2, 1)), v=np.tile(given.v, (1, 1, 2, 1)))
    once, both = Sample(case, given).forward, Sample(twice, doubled)
    found = subject.compute(twice, doubled)
    lse = once.lse.value[..., 0] + np.log(2.0)
    both.check_forward(found, once.out.value, lse, rows_only=True)


def merged_parts(subject: Subject, case: Case) -> None:
    """Two halves of the keys, weighted by e^lse, make the whole (`merge` in every split-KV)."""
    case = unmasked(case)
    if case.seqlen_k < 2:
        raise Inapplicable("one key has no halves")
    given, cut = inputs(case), case.seqlen_k // 2
    whole, on = Sample(case, given), machine("float64")
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        half = given._replace(k=given.k[:, :, part], v=given.v[:, :, part])
        shorter = replace(case, seqlen_k=half.k.shape[2])
        sample, found = Sample(shorter, half), subject.compute(shorter, half)
        out = Approx(sample.of(found["out"]).astype(np.float64), sample.forward.out.error, on)
        lse = Approx(
            sample.of(found["lse"]).astype(np.float64), sample.forward.lse.error[..., 0], on
        )
        parts.append((out, lse[..., None]))
    (out1, lse1), (out2, lse2) = parts
    top = exact(np.maximum(lse1.value, lse2.value), on)
    w1, w2 = exp(lse1 - top), exp(lse2 - top)
    merged = (out1 * w1 + out2 * w2) / (w1 + w2)
    found = subject.compute(case, given)
    for name, value in (("out", merged), ("lse", (log(w1 + w2) + top)[..., 0])):
        bound = getattr(whole.forward, name).error.reshape(value.value.shape)
        mine = Approx(value.value, value.error + bound, on)
        claims.within(name, whole.of(found[name]), mine, "of the whole, from its halves,")


def packed_is_padded(subject: Subject, case: Case) -> None:
    """Packed sequences give the same bits as batches padded to the length of the longest.

    If causal, the diagonal begins at the first query and key: one that ends at the last would be
    that of the padding. A mask that hides nothing, and equal layouts of rows, give the same tiles
    and the same order of NumPy's sums. Sums over all queries of a head (dsinks) have another order.
    """
    if not case.packed:
        raise Inapplicable("nothing is packed")
    case = as_padded(case)
    given = inputs(case)
    given = given._replace(mask=np.ones_like(given.mask) if case.mask == "" else given.mask)
    assert given.cu_seqlens_k is not None
    lengths = np.diff(given.cu_seqlens_k)
    if given.key_lengths is not None:
        lengths = np.minimum(lengths, given.key_lengths)
    batches = padded(case, given)._replace(key_lengths=lengths)
    found = subject.compute(replace(case, packed=False, key_lengths=True), batches)
    found.pop("dsinks", None)
    claims.same_bits(
        subject.compute(case, given), repacked(found, given, pack), "from that of padded batches"
    )


def packed_is_alone(subject: Subject, case: Case) -> None:
    """A packed sequence gives what it would in a call of its own; without keys, 0 and lse −∞."""
    if not case.packed:
        raise Inapplicable("nothing is packed")
    case = replace(case, dropout_p=0.0, dlse=False, score_mod=None)
    given = inputs(case)
    calls: list[tuple[int, Case, Inputs, Sample | None]] = []
    dout = np.zeros_like(given.dout)
    for s in range(case.batch):
        rows, _ = places(given, s)
        one, own = alone(case, given, s)
        if one.seqlen_q and one.seqlen_k:
            sample = Sample(one, own)
            own = sample.sparse(own)
            dout[:, :, rows] = own.dout
            calls.append((s, one, own, sample))
        elif not case.sinks:
            calls.append((s, one, own, None))
    found = subject.compute(case, given._replace(dout=dout))
    for s, one, own, few in calls:
        rows, keys = places(given, s)
        mine = {name: x[:, :, rows] for name, x in found.items() if name in QUERIES}
        mine |= {name: x[:, :, keys] for name, x in found.items() if name in ("dk", "dv")}
        if few is not None:
            few.check_agree(mine, subject.compute(one, own), "in a call of its own")
            continue
        for name, x in mine.items():
            lost = -np.inf if name == "lse" else 0.0
            assert (x == lost).all(), f"{name} of a sequence without queries, or without keys"


PROPERTIES: Mapping[str, Property] = {
    "single key": single_key,
    "saturation": saturation,
    "equal keys": equal_keys,
    "hull": hull,
    "masked rows": masked_rows,
    "clipped lengths": clipped_lengths,
    "permuted heads": permuted_heads(inputs, lambda case: replace(bare(case), dlse=case.dlse)),
    "batch alone": batch_alone,
    "causality": causality,
    "powers of two": powers_of_two,
    "other strides": other_strides,
    "other tiles": other_tiles,
    "reordered keys": reordered_keys,
    "reordered queries": reordered_queries,
    "repeated keys": repeated_keys,
    "merged parts": merged_parts,
    "packed is padded": packed_is_padded,
    "packed is alone": packed_is_alone,
    "gradient sums": gradients.sums,
    "shifted values": gradients.shifted_values,
    "slopes": gradients.slopes,
    "padding is not read": attention_not_numbers.padding_is_not_read(inputs, "k", "v"),
    "minus infinity hides": attention_not_numbers.minus_infinity_hides,
    "NaN is seen": not_numbers.seen(inputs, run, across=2),
}
