"""The contract of multi-head attention.

The domain, and the bound, derived, are `multi_head_attention_domain`; the properties of
`multi_head_attention_properties` hold for any correct implementation.
"""

from __future__ import annotations

from twofold.core.verify import domains
from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.attention_scoring import SQUASHED
from twofold.core.verify.contracts.multi_head_attention_domain import (
    Case,
    Inputs,
    cases,
    inputs,
    run,
    small,
    truth,
    whole,
)
from twofold.core.verify.contracts.multi_head_attention_properties import PROPERTIES

__all__ = ["CONTRACT", "EVERYTHING", "Case", "Inputs", "inputs", "run", "small", "truth", "whole"]

PINNED = tuple(
    Case(
        dtype=dtype,
        batch=2,
        seqlen_q=37,
        seqlen_k=seqlen_k,
        head_dim=17,
        causal=seqlen_k is None,
        key_lengths=True,
        dropout_p=0.1,
        rotary=rotary,
        allow_tf32=allow_tf32,
    )
    for dtype, allow_tf32 in domains.PRECISIONS
    for seqlen_k, rotary in ((None, "half"), (None, "interleaved"), (67, None))
)
GROUPED = tuple(
    Case(heads=6, groups=3, seqlen_q=5, seqlen_k=seqlen_k, rotary=rotary, fused=rotary == "half")
    for seqlen_k, rotary in ((None, "half"), (None, "interleaved"), (7, None))
)
# All of attention's other options: on rows of one projection, and of two.
EVERYTHING = tuple(
    Case(
        batch=3,
        heads=4,
        groups=2,
        seqlen_q=9,
        seqlen_k=seqlen_k,
        softmax_scale=0.3,
        window_size=(6, 2),
        softcap=3.0,
        alibi="BH",
        bias="BHMN",
        sinks=True,
        mask="B1MN",
        block_mask="1HMN",
        block_size=(2, 3),
        dropout_p=0.1,
        rotary="half",
        fused=True,
        packed=packed,
        seed=1,
    )
    for seqlen_k in (None, 11)
    for packed in (False, True)
)

# Parameters' gradients in more bits than the parameters have, each of two projections in its part.
WRITTEN = tuple(
    Case("bfloat16", seqlen_q=5, seqlen_k=seqlen_k, layout=layout, into="float32")
    for seqlen_k, layout in ((None, "contiguous"), (7, "transposed"))
)

# Gradients that nobody reads, beside ones that are read.
UNREAD = tuple(
    Case(seqlen_q=5, seqlen_k=seqlen_k, bias="BHMN", sinks=True, unread=unread)
    for seqlen_k, unread in (
        (None, ("x",)), (None, ("weights",)), (None, ("bias",)),
        (7, ("x",)), (7, ("context",)), (7, ("weights",)), (7, ("x", "context", "weights", "bias")),
    )
)  # fmt: skip

GRADIENTS = ("dx", "dcontext", "dw_qkv", "db_qkv", "dw_out", "db_out", "dbias", "dsinks")

CONTRACT = Contract(
    operator="multi_head_attention",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward"} | dict.fromkeys(GRADIENTS, "backward"),
    pinned=(
        *PINNED,
        *GROUPED,
        *EVERYTHING,
        *WRITTEN,
        *UNREAD,
        Case(score_mod=SQUASHED, causal="top-left"),
    ),
    properties=PROPERTIES,
    small=small,
    # The kernels are compiled with their own operators; here with an odd head_dim, out of a packed
    # projection.
    compiled=tuple(
        case
        for case in PINNED
        if case.rotary == "half" and case.dtype != "float16" and not case.allow_tf32
    ),
)
