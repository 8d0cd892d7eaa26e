"""What is true of any attention where numbers are none: −∞ hides, padding is not read.

Shared by the contracts of attention and of what stands around it; that a NaN is seen is in
`not_numbers`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from twofold.core.verify import claims
from twofold.core.verify.contract import Subject
from twofold.core.verify.contracts.attention_domain import Case, Inputs, inputs
from twofold.core.verify.domains import Array
from twofold.reference.attention_scores import pack

HIDDEN = "BHMN"
PADDED = "with something else in the padding"


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
