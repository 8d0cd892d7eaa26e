"""What is true of any attention in 8 bits: claims that need no reference.

Each compares what an implementation computed for one call with what it computed for another, or
with what mathematics says without an exponential. How far apart they may be is the derived bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Inapplicable, Property, Subject
from twofold.core.verify.contracts.attention_domain import scale
from twofold.core.verify.contracts.attention_fp8_domain import Case, Inputs, inputs, run, truth
from twofold.core.verify.contracts.attention_not_numbers import padding_is_not_read
from twofold.core.verify.contracts.attention_packed import padded
from twofold.core.verify.contracts.attention_sample import (
    bare,
    full_live,
    permuted_heads,
    unmasked,
)
from twofold.core.verify.domains import representable
from twofold.core.verify.rounding import Approx, Array, exact, machine
from twofold.kernels.attention_fp8_tiles import ENTRIES
from twofold.reference.attention_fp8 import LARGEST, nearest
from twofold.reference.rotary import Rotary, turn

CALL = ("out", "lse")
QUARTERS = np.array([0.0, 1.0, 0.0, -1.0, 0.0])  # the sine of 0 … 4 quarter turns


def half_a_unit(subject: Subject, case: Case) -> None:
    """|x − x8·scale| ≤ 2⁻⁴·|x| + 2⁻¹⁰·scale, and each x8 is an e4m3 number, at most 448.

    Where x is not too small the first half unit has a seventeenth to spare for other roundings.
    """
    given = inputs(case)
    found = subject.compute(case, given)
    x8, by = (found[name].astype(np.float64) for name in ("x8", "scale"))
    assert np.array_equal(nearest(x8), x8), "x8 has numbers that e4m3 has not"
    by = by[..., None, None]
    most = np.abs(x8).max((2, 3))
    largest = np.abs(given.x).max((2, 3))
    assert (most == np.where(largest > 0, LARGEST, 0))[largest >= 2.0**-110].all(), (
        f"the largest of a head is {most.min():g}, not {LARGEST:g}"
    )
    room = np.abs(x8 * by - given.x) / (2.0**-4 * np.abs(given.x) + 2.0**-10 * by)
    assert (room <= 1).all(), f"x8·scale is {room.max():.3g} times further from x than it may be"


def quantized_again(subject: Subject, case: Case) -> None:
    """Quantising what was quantised gives the same 8-bit numbers again."""
    case = replace(case, dtype="float32")
    given = inputs(case)
    found = subject.compute(case, given)
    x8, by = (found[name].astype(np.float64) for name in ("x8", "scale"))
    again = given._replace(x=representable(x8 * by[..., None, None], "float32"))
    after = subject.compute(case, again)
    claims.same_bits({"x8": found["x8"]}, {"x8": after["x8"]}, "quantised again")


def nan_is_seen(subject: Subject, case: Case) -> None:
    """NaN or ∞ becomes its head's scale and makes its x8·scale NaN; other heads keep theirs."""
    given, rng = inputs(case), np.random.default_rng(case.seed)
    found = subject.compute(case, given)
    at = tuple(int(rng.integers(0, n)) for n in given.x.shape)
    head = np.zeros(given.x.shape[:2], bool)
    head[at[:2]] = True
    for what in (np.nan, np.inf, -np.inf):
        x = given.x.copy()
        x[at] = what
        after = subject.compute(case, given._replace(x=x))
        x8, by = (after[name].astype(np.float64) for name in ("x8", "scale"))
        assert np.array_equal(by[head], [abs(what)], equal_nan=True), f"a scale with {what} in x"
        assert np.isnan(x8 * by[..., None, None])[head].all(), f"x8·scale with {what} in x"
        for name in ("x8", "scale"):
            beside = f"beside a head with {what}"
            claims.same_bits({name: found[name][~head]}, {name: after[name][~head]}, beside)


def scales_are_factors(subject: Subject, case: Case) -> None:
    """Powers of two move from one scale to another, and from v's to the output, bit for bit."""
    case = replace(bare(case), softmax_scale=scale(case), magnitude="unit", dtype="float32")
    given = inputs(case)
    before = claims.numbers(subject.compute(case, given), *CALL)
    twice_k, half = given._replace(k_scale=2 * given.k_scale), scale(case) / 2
    for what, other, call in (
        ("of q for half of k", case,
         given._replace(q_scale=2 * given.q_scale, k_scale=given.k_scale / 2)),
        ("of k for half the softmax scale", replace(case, softmax_scale=half), twice_k),
        ("of v", case, given._replace(v_scale=2 * given.v_scale)),
    ):  # fmt: skip
        after = claims.numbers(subject.compute(other, call), *CALL)
        if what == "of v":
            after["out"] = after["out"] / 2
        claims.same_bits(before, after, f"with twice the scale {what}")


def equal_values(subject: Subject, case: Case) -> None:
    """The average of equal values is that value."""
    case = unmasked(case)
    given = inputs(case)
    v = given.call.v.copy()
    v[:] = v[:, :, :1]
    given = given._replace(call=given.call._replace(v=v))
    by = np.broadcast_to(given.v_scale, v.shape[:2])[..., None, None]
    bound = truth(case, given)["out"]
    bound = replace(bound, value=np.broadcast_to(v[:, :, :1] * by, bound.value.shape))
    claims.within("out", subject.compute(case, given)["out"], bound, "of equal values")


def one_key(subject: Subject, case: Case) -> None:
    """A query with one key gets its value: the weight is 1 or nearly, and is cast to exactly 1.

    What else rounds is the weight before its cast, in the sum, and the steps from there.
    """
    case = replace(unmasked(case), seqlen_k=1, dtype="float32")
    given, on = inputs(case), machine("float32")
    v, total = exact(given.call.v, on), Approx(np.ones(()), np.asarray(on.u_function), on)
    by = exact(np.broadcast_to(given.v_scale, given.call.v.shape[:2])[..., None, None], on)
    bound = v * (1.0 / total) * by
    bound = bound.moved(lambda x: np.broadcast_to(x, given.call.q.shape))
    claims.within("out", subject.compute(case, given)["out"], bound, "of one key")


def equal_keys(subject: Subject, case: Case) -> None:
    """Keys of zeros weigh alike: lse is the logarithm of their number."""
    case = replace(bare(case), magnitude="unit")
    given = inputs(case)
    given = given._replace(call=given.call._replace(k=np.zeros_like(given.call.k)))
    with np.errstate(divide="ignore"):
        lse = np.log(full_live(case, given.call).sum(-1))
    bound = replace(truth(case, given)["lse"], value=lse)
    claims.within("lse", subject.compute(case, given)["lse"], bound, "of equal keys")


def unattended(subject: Subject, case: Case) -> None:
    """Without a key the output is 0, and lse −∞ or the sink."""
    case = replace(case, packed=False)
    given = inputs(case)
    none = ~full_live(case, given.call).any(-1)  # (B, H, M)
    found = subject.compute(case, given)
    assert (found["out"][none] == 0).all(), "an output is not 0 though its query attends to nothing"
    lse = np.full(none.shape, -np.inf)
    if given.call.sinks is not None:
        lse = np.broadcast_to(given.call.sinks[:, None], none.shape)
    bound = truth(case, given)["lse"]
    bound = replace(bound, value=np.where(none, lse, found["lse"]))
    claims.within("lse", found["lse"], bound, "without a key")


def unseen(subject: Subject, case: Case) -> None:
    """Keys and values that no query attends to affect nothing, bit for bit."""
    case = replace(case, packed=False)
    given = inputs(case)
    live = full_live(case, given.call)
    B, H, M, N = live.shape
    dead = live.reshape(B, H // case.groups, case.groups * M, N).sum(2) == 0  # (B, K, N)
    if not np.any(dead):
        raise Inapplicable("every key is attended to")
    k, v = (np.where(dead[..., None], -LARGEST, a) for a in (given.call.k, given.call.v))
    other = given._replace(call=given.call._replace(k=k, v=v))
    before, after = (claims.numbers(subject.compute(case, x), *CALL) for x in (given, other))
    claims.same_bits(before, after, "with other keys that nobody attends to")


def grouped_heads(subject: Subject, case: Case) -> None:
    """Heads that share keys give what they would with a copy each."""
    if case.groups == 1:
        raise Inapplicable("every head has keys of its own")
    given = inputs(case)
    k, v = (x.repeat(case.groups, axis=1) for x in (given.call.k, given.call.v))
    k_scale, v_scale = (
        x.repeat(case.groups, axis=-1) if x.ndim and x.shape[-1] > 1 else x
        for x in (given.k_scale, given.v_scale)
    )
    own = Inputs(given.call._replace(k=k, v=v), given.q_scale, k_scale, v_scale, given.x)
    apart = subject.compute(replace(case, groups=1), own)
    found, bounds = subject.compute(case, given), truth(case, given)
    for name in CALL:
        what = "with keys repeated for every head"
        claims.agree(name, found[name], apart[name], bounds[name], what)


def packed_as_padded(subject: Subject, case: Case) -> None:
    """A packed sequence gives what it would as a batch of its own."""
    given = inputs(case)
    starts_q, starts_k = given.call.cu_seqlens_q, given.call.cu_seqlens_k
    if starts_q is None or starts_k is None:
        raise Inapplicable("nothing is packed")
    lengths = np.diff(starts_k)
    # A diagonal is that of the sequence in one call and that of the longest in the other.
    case = replace(
        case, key_lengths=True, causal=False, window_size=None, alibi=None, score_mod=None
    )
    given_lengths = given.call.key_lengths
    shortest = lengths if given_lengths is None else np.minimum(lengths, given_lengths)
    given = given._replace(call=given.call._replace(key_lengths=shortest, alibi_slopes=None))
    found, bounds = subject.compute(case, given), truth(case, given)
    alone = given._replace(call=padded(case, given.call))
    apart = subject.compute(replace(case, packed=False), alone)
    for name in CALL:
        rows = [apart[name][s, :, :n] for s, n in enumerate(np.diff(starts_q))]
        mine = np.concatenate(rows, axis=1)[None]
        claims.agree(name, found[name], mine, bounds[name], "beside batches")


def quarter_turns(subject: Subject, case: Case) -> None:
    """e4m3 numbers after quarter turns are e4m3: rotating on reading equals rotating before."""
    given, rng = inputs(replace(case, rotary=None)), np.random.default_rng(case.seed)
    call, pairs = given.call, case.head_dim // 2
    if pairs == 0:
        raise Inapplicable("one feature is no pair")

    def tables(x: Array) -> tuple[Array, Array]:
        quarters = rng.integers(0, 4, (x.shape[2], pairs))
        return QUARTERS[quarters + 1], QUARTERS[quarters]

    turns = Rotary(*tables(call.q), *tables(call.k), case.seed % 2 == 0)
    q, k = turn(call.q, *turns.of_q), turn(call.k, *turns.of_k)
    before = given._replace(call=call._replace(q=q, k=k))
    read = given._replace(call=call._replace(rotary=turns))
    found, already = subject.compute(case, read), subject.compute(case, before)
    bounds, others = truth(case, read), truth(case, before)
    for name in CALL:
        error = np.maximum(bounds[name].error, others[name].error)
        bound = replace(bounds[name], error=error)
        claims.agree(name, found[name], already[name], bound, "beside what is turned already")


PROPERTIES: Mapping[str, Property] = {
    "half a unit": half_a_unit,
    "quantised again": quantized_again,
    "NaN is seen": nan_is_seen,
    "scales are factors": scales_are_factors,
    "equal values": equal_values,
    "one key": one_key,
    "equal keys": equal_keys,
    "unattended": unattended,
    "unseen": unseen,
    "permuted heads": permuted_heads(inputs, lambda case: replace(bare(case), scales="BH")),
    "grouped heads": grouped_heads,
    "packed as padded": packed_as_padded,
    "quarter turns": quarter_turns,
    "other strides": claims.other_strides(inputs, truth, "transposed"),
    "other tiles": claims.other_tiles(inputs, truth, ENTRIES, domains.holds_features),
    "NaN of the call is seen": not_numbers.seen(inputs, run, across=2),
    "padding is not read": padding_is_not_read(inputs, "k", "v"),
}
