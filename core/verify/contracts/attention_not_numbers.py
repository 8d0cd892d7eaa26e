"""What is true of any attention where numbers are none: NaN is seen, −∞ hides, padding is not read.

Shared by the contracts of attention and of what stands around it. NaN is asked of our kernels
alone: torch's attention gives a query of NaN the output 0 on a CPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from twofold.core.verify import claims, not_numbers
from twofold.core.verify.contract import Property, Subject
from twofold.core.verify.contracts.attention_domain import Case, Inputs, inputs, run
from twofold.core.verify.contracts.attention_sample import attending
from twofold.core.verify.domains import Array
from twofold.reference.attention_scores import pack

C = TypeVar("C", bound=Case)

FEW_QUERIES, FEW_KEYS = 5, 20  # a NaN is put into every input in turn: many calls
HIDDEN = "BHMN"
PADDED = "with something else in the padding"


def few(case: C) -> C:
    """Return a small case in which every query attends to every key."""
    return replace(
        attending(case),
        seqlen_q=min(case.seqlen_q, FEW_QUERIES),
        seqlen_k=min(case.seqlen_k, FEW_KEYS),
    )


nan_is_seen: Property = not_numbers.seen(inputs, run, of=few, of_others=False)


def filled(subject: Subject, case: Case, given: Inputs, *of_keys: Array) -> list[Array]:
    """Return what is of keys, (B, K, N, D), with something else in their padding.

    That must be finite, but a kernel of ours does not read it.
    """
    assert given.key_lengths is not None
    behind = np.arange(case.seqlen_k) >= given.key_lengths[:, None]
    padding = pack(behind[:, None, :, None], given.cu_seqlens_k)
    other = np.nan if subject.name == "triton" else 3.0
    return [np.where(padding, other, x) for x in of_keys]


def padding_is_not_read(subject: Subject, case: Case) -> None:
    """What the keys and values of padding hold changes no bit."""
    case = replace(case, key_lengths=True)
    given = inputs(case)
    k, v = filled(subject, case, given, given.k, given.v)
    other = given._replace(k=k, v=v)
    claims.same_bits(subject.compute(case, given), subject.compute(case, other), PADDED)


def minus_infinity_hides(subject: Subject, case: Case) -> None:
    """A bias of −∞ hides a key as a mask does, bit for bit, and all of a query's keys, too."""
    case = replace(case, bias=HIDDEN, mask=None)
    given, rng = inputs(case), np.random.default_rng(case.seed)
    assert given.bias is not None
    shape = given.bias.shape
    live = np.asarray((rng.random(shape) < 0.7) & (rng.random((*shape[:-1], 1)) < 0.8))
    by_bias = given._replace(bias=np.where(live, given.bias, -np.inf))
    by_mask = subject.compute(replace(case, mask=HIDDEN), given._replace(mask=live))
    claims.same_bits(by_mask, subject.compute(case, by_bias), "with −∞ in a bias for a mask")
