"""The contract of attention.

The domain is `attention_domain`, the bound `attention_bound`; the properties of
`attention_properties` hold for any correct implementation, and between them catch a faulty one
without knowing the truth, hence at any size.
"""

from __future__ import annotations

from typing import Any

from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.attention_domain import (
    LAYOUTS,
    MASKS,
    PRECISIONS,
    Case,
    Inputs,
    cases,
    inputs,
    place,
    place_mask,
    problem,
    run,
    scale,
    small,
    truth,
)
from twofold.core.verify.contracts.attention_properties import PROPERTIES
from twofold.kernels.attention_tiles import ENTRIES

__all__ = [
    "CONTRACT", "LAYOUTS", "MASKS", "PRECISIONS", "Case", "Inputs", "inputs", "place", "place_mask",
    "problem", "run", "scale", "small", "truth",
]  # fmt: skip

LEAST: dict[str, Any] = {}
DROPOUT: dict[str, Any] = {"dropout_p": 0.1, "dlse": True}
EVERYTHING: dict[str, Any] = {"dropout_p": 0.1, "mask": "B1MN", "key_lengths": True}

CONTRACT = Contract(
    operator="attention",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={
        "out": "forward",
        "lse": "forward",
        "dq": "backward",
        "dk": "backward",
        "dv": "backward",
    },
    pinned=(
        *(
            Case(
                dtype=dtype,
                seqlen_q=tile.block_m + 1,
                seqlen_k=2 * tile.block_n + 1,
                head_dim=head_dim,
                causal=True,
                dropout_p=0.1,
                dlse=True,
                tile=i,
            )
            for i, ((_, element_size, head_dim), tile) in enumerate(ENTRIES)
            for dtype in (("float32",) if element_size == 4 else ("float16", "bfloat16"))
        ),
        # The diagonal goes through the last key of a tile, of the one before it, and beside both.
        *(Case(seqlen_q=3, seqlen_k=n, causal=True) for n in (16, 17, 18, 32, 33, 34)),
    ),
    properties=PROPERTIES,
    small=small,
    # As models call it, with the tiles that are chosen: the least there is, dropout, everything.
    compiled=tuple(
        Case(
            dtype=dtype,
            allow_tf32=allow_tf32,
            batch=2,
            heads=3,
            seqlen_q=128,
            seqlen_k=128,
            head_dim=head_dim,
            layout="heads inside",
            causal=True,
            **flags,
        )
        for head_dim in sorted({head_dim for (_, _, head_dim), _ in ENTRIES})
        for dtype, allow_tf32, variants in (
            ("float16", False, (LEAST,)),
            ("bfloat16", False, (DROPOUT, EVERYTHING)),
            ("float32", False, (DROPOUT, EVERYTHING)),
            ("float32", True, (LEAST,)),
        )
        for flags in variants
    ),
)
