"""What is true of any backward of attention's backward: claims that need no reference.

With u = (ddq, ddk, ddv) the gradients of q, k and v are H·u, H the Hessian of F = ⟨out, dout⟩ +
⟨lse, dlse⟩, and those of dout and dlse the derivatives of out and lse along u. Where F is
invariant, so is H. How far apart two results may be is the derived bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.verify import claims, domains, not_numbers
from twofold.core.verify.contract import Inapplicable, Outputs, Property, Subject
from twofold.core.verify.contracts.attention_domain import scale
from twofold.core.verify.contracts.attention_double_backward_domain import (
    Case,
    Inputs,
    inputs,
    run,
    truth,
)
from twofold.core.verify.contracts.attention_not_numbers import padding_is_not_read
from twofold.core.verify.contracts.attention_packed import padded, repacked
from twofold.core.verify.contracts.attention_sample import (
    as_padded,
    bare,
    full_live,
    permuted_heads,
    plain,
    unmasked,
)
from twofold.core.verify.rounding import Approx, Array, machine
from twofold.kernels.attention_double_backward_tiles import ENTRIES
from twofold.reference.attention_scores import pack, unpack

OF_QUERIES = ("dq", "ddout", "ddlse")


def within_zero(found: Outputs, bounds: Mapping[str, Approx], names: tuple[str, ...]) -> None:
    """Raise unless these outputs are 0 within their bounds."""
    for name in names:
        bound = bounds[name]
        claims.within(name, found[name], replace(bound, value=np.zeros_like(bound.value)))


def zero_cotangents(subject: Subject, case: Case) -> None:
    """If ddq, ddk and ddv are zero, so is every gradient."""
    given = inputs(case)
    zeros = Inputs(given.call, *(np.zeros_like(x) for x in given[1:]))
    for name, x in subject.compute(case, zeros).items():
        assert (x == 0).all(), f"{name} of zeros"


def powers_of_two(subject: Subject, case: Case) -> None:
    """Everything is linear in the cotangents, and a power of two passes through exactly."""
    if case.dtype == "float16":
        raise Inapplicable("a float16 over- and underflows")
    case = replace(case, magnitude="unit", logits=min(case.logits, 1.0))
    given = inputs(case)
    larger = Inputs(given.call, *(4 * x for x in given[1:]))
    before = {name: 4 * x for name, x in subject.compute(case, given).items()}
    claims.same_bits(before, subject.compute(case, larger), "with all cotangents 4 times as large")


def parts(subject: Subject, case: Case) -> None:
    """The results of ddq, ddk and ddv alone add up to the result of all three."""
    given = inputs(case)
    whole, bounds = subject.compute(case, given), truth(case, given)
    alone = [
        Inputs(given.call, *(x * float(i == j) for j, x in enumerate(given[1:]))) for i in range(3)
    ]
    found = [subject.compute(case, one) for one in alone]
    errors = [truth(case, one) for one in alone]
    for name, x in whole.items():
        total = np.sum([part[name].astype(np.float64) for part in found], axis=0)
        error = bounds[name].error + sum(part[name].error for part in errors)
        claims.within(name, x, Approx(total, error, bounds[name].on), "not the sum of its parts:")


def repeated_heads(subject: Subject, case: Case) -> None:
    """Sharing keys is like having equal keys, but dk and dv are sums over the heads."""
    shared = replace(bare(case), heads=2, groups=2, dlse=case.dlse)
    own = replace(shared, groups=1)
    given = inputs(shared)
    call = given.call
    twice: dict[str, Any] = {n: np.repeat(getattr(call, n), 2, axis=1) for n in ("k", "v")}
    ddk, ddv = (np.repeat(x, 2, axis=1) for x in (given.ddk, given.ddv))
    other = Inputs(call._replace(**twice), given.ddq, ddk, ddv)
    first, second = subject.compute(shared, given), subject.compute(own, other)
    bounds, others = truth(shared, given), truth(own, other)
    for name in bounds.keys() & set(OF_QUERIES):
        claims.agree(name, first[name], second[name], bounds[name], "with keys of its own")
    for name in ("dk", "dv"):
        total = second[name].astype(np.float64).sum(1, keepdims=True)
        error = bounds[name].error + others[name].error.sum(1, keepdims=True)
        claims.within(name, first[name], Approx(total, error, bounds[name].on), "of two heads")


def symmetry(subject: Subject, case: Case) -> None:
    """A Hessian is symmetric: ⟨H·u, w⟩ = ⟨u, H·w⟩."""
    given, rng = inputs(case), np.random.default_rng((case.seed, 2))
    drawn = (domains.draw(rng, x.shape, "unit", case.dtype) for x in given[1:])
    other = Inputs(given.call, *drawn)
    sides = []
    for one, along in ((given, other), (other, given)):
        found, bounds = subject.compute(case, one), truth(case, one)
        gradients = [found[name] for name in ("dq", "dk", "dv")]
        errors = [bounds[name].error for name in ("dq", "dk", "dv")]
        sides.append((joined(gradients), joined(along[1:]), joined(errors)))
    claims.products("⟨H·u, w⟩ is not ⟨u, H·w⟩", *sides)


def joined(arrays: Any) -> Array:
    """Concatenate all elements of several arrays into one row."""
    return np.concatenate([np.ravel(x) for x in arrays])


def moved_keys(subject: Subject, case: Case) -> None:
    """Adding one vector to all keys changes no output, so derivatives along it are 0."""
    case, given = invariant(case)
    same = np.broadcast_to(given.ddk[:, :, :1], given.ddk.shape)
    along = Inputs(given.call, np.zeros_like(given.ddq), same, np.zeros_like(given.ddv))
    names = ("dq", "dk", "dv", "ddout")
    within_zero(subject.compute(case, along), truth(case, along), names)


def moved_values(subject: Subject, case: Case) -> None:
    """Adding one vector to all values moves every output by it and changes no gradient."""
    case, given = invariant(case)
    same = np.broadcast_to(given.ddv[:, :, :1], given.ddv.shape)
    along = Inputs(given.call, np.zeros_like(given.ddq), np.zeros_like(given.ddk), same)
    found, bounds = subject.compute(case, along), truth(case, along)
    within_zero(found, bounds, ("dq", "dk", "dv"))
    live = full_live(case, given.call).any(-1, keepdims=True)
    moved = np.where(live, same[:, :, :1], 0.0)
    claims.within("ddout", found["ddout"], replace(bounds["ddout"], value=moved))


def gradient_sums(subject: Subject, case: Case) -> None:
    """Σ dk = Σ dv = 0 over the keys; ⟨v, dv⟩ = ⟨dout, ddout⟩ and ⟨q, dq⟩ = ⟨k, dk⟩ where they must.

    A vector added to all keys leaves F unchanged, one added to all values changes it by a constant.
    Without ddv, dv and ddout depend only on R; F depends on q and k only through their products.
    """
    case, given = invariant(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    for name in ("dk", "dv"):
        x = found[name].astype(np.float64)
        error = bounds[name].error.sum(-2) + 2.0**-50 * x.shape[-2] * np.abs(x).sum(-2)
        total = Approx(np.zeros_like(error), error, machine("float64"))
        claims.within(f"Σ {name}", x.sum(-2), total)
    one = given._replace(ddv=np.zeros_like(given.ddv))
    found, bounds = subject.compute(case, one), truth(case, one)
    claims.products(
        "⟨v, dv⟩ is not ⟨dout, ddout⟩",
        (found["dv"], one.call.v, bounds["dv"].error),
        (found["ddout"], one.call.dout, bounds["ddout"].error),
    )
    one = given._replace(ddq=np.zeros_like(given.ddq), ddk=np.zeros_like(given.ddk))
    found, bounds = subject.compute(case, one), truth(case, one)
    claims.products(
        "⟨q, dq⟩ is not ⟨k, dk⟩",
        (found["dq"], one.call.q, bounds["dq"].error),
        (found["dk"], one.call.k, bounds["dk"].error),
    )


def invariant(case: Case) -> tuple[Case, Inputs]:
    """Return a case whose scores are plain products, without a gradient of lse, and its inputs."""
    case = bare(case)
    return case, inputs(case)


def single_key(subject: Subject, case: Case) -> None:
    """With one key, out = v and lse is the score: only lse has second derivatives."""
    case = replace(unmasked(case), seqlen_k=1, dlse=True)
    given = inputs(case)
    found, bounds = subject.compute(case, given), truth(case, given)
    call, by = given.call, scale(case)
    ds = by * np.asarray(call.dlse)[..., None]  # (B, H, M, 1)
    values = {
        "dq": ds * given.ddk,
        "dk": (ds * given.ddq).sum(-2, keepdims=True),
        "dv": np.zeros(call.v.shape),
        "ddout": np.broadcast_to(given.ddv, call.q.shape),
        "ddlse": by * (given.ddq * call.k + call.q * given.ddk).sum(-1),
    }
    for name, value in values.items():
        claims.within(name, found[name], replace(bounds[name], value=value), "of one key")


def masked_rows(subject: Subject, case: Case) -> None:
    """A query without keys has zero gradients, and so has a key without queries."""
    case = replace(case, groups=1, packed=False)
    given = inputs(case)
    found, live = subject.compute(case, given), full_live(case, given.call)
    for name, x in found.items():
        none = ~live.any(-1 if name in OF_QUERIES else -2)
        assert (x[none] == 0.0).all(), f"{name} where nothing is attended"


def reordered_keys(subject: Subject, case: Case) -> None:
    """A softmax does not depend on the order of its keys: reversed, they give the same."""
    case = replace(unmasked(case), dlse=case.dlse)
    given = inputs(case)
    call, ddk, ddv = given.call, given.ddk[:, :, ::-1], given.ddv[:, :, ::-1]
    turned = call._replace(k=call.k[:, :, ::-1], v=call.v[:, :, ::-1])
    first = subject.compute(case, given)
    second = subject.compute(case, Inputs(turned, given.ddq, ddk, ddv))
    for name, bound in truth(case, given).items():
        x = second[name] if name in OF_QUERIES else second[name][:, :, ::-1]
        claims.agree(name, first[name], x, bound, "with the keys in reverse")


def causality(subject: Subject, case: Case) -> None:
    """With a causal mask, the last key affects no query but the last."""
    case = replace(plain(case), causal=True)
    given = inputs(case)
    call = given.call
    changed = {n: getattr(call, n).copy() for n in ("k", "v")}
    ddk, ddv = given.ddk.copy(), given.ddv.copy()
    for x in (*changed.values(), ddk, ddv):
        x[..., -1, :] *= -1
    first = subject.compute(case, given)
    second = subject.compute(case, Inputs(call._replace(**changed), given.ddq, ddk, ddv))
    for name in OF_QUERIES:
        if name in first:
            one, other = (x[name][:, :, : case.seqlen_q - 1] for x in (first, second))
            assert np.array_equal(one, other, equal_nan=True), f"{name} sees a later key"


def packed_is_padded(subject: Subject, case: Case) -> None:
    """Packed sequences give the same bits as batches padded to the length of the longest.

    As for attention, whose property of this name says what must be equal for that.
    """
    if not case.packed:
        raise Inapplicable("nothing is packed")
    case = as_padded(case)
    given = inputs(case)
    call = given.call
    if case.mask == "":
        call = call._replace(mask=np.ones((), bool))
    assert call.cu_seqlens_k is not None
    lengths = np.diff(call.cu_seqlens_k)
    if call.key_lengths is not None:
        lengths = np.minimum(lengths, call.key_lengths)
    batches = Inputs(
        padded(case, call)._replace(key_lengths=lengths),
        unpack(given.ddq, call.cu_seqlens_q, case.seqlen_q),
        *(unpack(x, call.cu_seqlens_k, case.seqlen_k) for x in given[2:]),
    )
    found = subject.compute(replace(case, packed=False, key_lengths=True), batches)
    claims.same_bits(
        subject.compute(case, given._replace(call=call)),
        repacked(found, call, pack),
        "from that of padded batches",
    )


PROPERTIES: Mapping[str, Property] = {
    "zero cotangents": zero_cotangents,
    "powers of two": powers_of_two,
    "parts": parts,
    "permuted heads": permuted_heads(inputs, lambda case: replace(bare(case), dlse=case.dlse)),
    "repeated heads": repeated_heads,
    "symmetry": symmetry,
    "moved keys": moved_keys,
    "moved values": moved_values,
    "gradient sums": gradient_sums,
    "single key": single_key,
    "masked rows": masked_rows,
    "other strides": claims.other_strides(inputs, truth, "heads inside"),
    "other tiles": claims.other_tiles(inputs, truth, ENTRIES),
    "reordered keys": reordered_keys,
    "causality": causality,
    "packed is padded": packed_is_padded,
    "padding is not read": padding_is_not_read(inputs, "k", "v", "ddk", "ddv"),
    "NaN is seen": not_numbers.seen(inputs, run, across=2),
}
