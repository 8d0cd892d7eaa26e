"""What is true of any attention about NaN and −∞: −∞ hides a key, padding is not read.

Shared by the contracts of attention and of operators around it; that a NaN propagates is in
`not_numbers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from twofold.core.verify import claims
from twofold.core.verify.contract import Property, Subject
from twofold.core.verify.contracts.attention_domain import Case, inputs
from twofold.core.verify.not_numbers import arrays
from twofold.reference.attention_scores import pack

HIDDEN = "BHMN"


def padding_is_not_read(inputs: Callable[[Any], Any], *of_keys: str) -> Property:
    """Return the property for a contract of these inputs; `of_keys` names its (B, K, N, D).

    For other functions the numbers in the padding are finite; a kernel of ours must not read NaN.
    """

    def padding_is_not_read(subject: Subject, case: Any) -> None:
        """Whatever the padding of the keys holds, it changes no bit."""
        case = replace(case, key_lengths=True)
        given = inputs(case)
        call = getattr(given, "call", given)
        behind = np.arange(case.seqlen_k) >= call.key_lengths[:, None]
        padding = pack(behind[:, None, :, None], call.cu_seqlens_k)
        filling, other = np.nan if subject.name == "triton" else 3.0, given
        for wanted in of_keys:
            x, put = next((x, put) for name, x, put in arrays(other) if name == wanted)
            other = put(np.where(padding, filling, x))
        what = "with something else in the padding"
        claims.same_bits(subject.compute(case, given), subject.compute(case, other), what)

    return padding_is_not_read


def minus_infinity_hides(subject: Subject, case: Case) -> None:
    """A bias of −∞ hides a key, or all keys of a query, as a mask does, bit for bit."""
    case = replace(case, bias=HIDDEN, mask=None)
    given, rng = inputs(case), np.random.default_rng(case.seed)
    assert given.bias is not None
    shape = given.bias.shape
    live = np.asarray((rng.random(shape) < 0.7) & (rng.random((*shape[:-1], 1)) < 0.8))
    by_bias = given._replace(bias=np.where(live, given.bias, -np.inf))
    by_mask = subject.compute(replace(case, mask=HIDDEN), given._replace(mask=live))
    claims.same_bits(by_mask, subject.compute(case, by_bias), "with −∞ in a bias for a mask")
