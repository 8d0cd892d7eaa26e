"""The contract of merging partial attention by log-sum-exp.

The domain and the bound, derived, are `merge_attention_domain`; the properties of
`merge_attention_properties` hold for any correct implementation.
"""

from __future__ import annotations

from twofold.core.verify import domains
from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.merge_attention_domain import (
    LAYOUTS,
    LSE_SCALES,
    Case,
    Inputs,
    cases,
    inputs,
    place,
    run,
    small,
    truth,
)
from twofold.core.verify.contracts.merge_attention_properties import PROPERTIES

__all__ = [
    "CONTRACT", "LAYOUTS", "LSE_SCALES", "Case", "Inputs", "inputs", "place", "run", "small",
    "truth",
]  # fmt: skip

# (tile, parts, queries, head_dim, magnitude): more than a block of rows, which ends within a head.
SHAPES = (
    (0, 17, 11, 17, "unit"),
    (1, 16, 5, 65, "unit"),
    (2, 33, 5, 130, "unit"),
    (3, 17, 1, 257, "unit"),
    (0, 5, 11, 7, "largest"),
)

CONTRACT = Contract(
    operator="merge_attention",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "lse": "forward", "douts": "backward", "dlses": "backward"},
    pinned=tuple(
        Case(
            dtype,
            parts=parts,
            batch=2,
            heads=3,
            seqlen_q=seqlen_q,
            head_dim=head_dim,
            dead=0.3,
            magnitude=magnitude,
            float32_parts=dtype == "bfloat16",
            dlse=True,
            tile=tile,
        )
        for tile, parts, seqlen_q, head_dim, magnitude in SHAPES
        for dtype in domains.DTYPES
    ),
    properties=PROPERTIES,
    small=small,
    # As decoding and training call it: with the tiles that are chosen, and parts of either width.
    compiled=tuple(
        Case(
            dtype=dtype,
            parts=8,
            heads=16,
            seqlen_q=16,
            head_dim=head_dim,
            layout="heads inside",
            float32_parts=float32_parts,
            dlse=dlse,
        )
        for head_dim in (32, 128, 256, 512)
        for dtype, float32_parts in (
            ("float32", False),
            ("float16", False),
            ("bfloat16", False),
            ("bfloat16", True),
        )
        for dlse in (False, True)
    ),
)
