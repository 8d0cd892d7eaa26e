"""The contract of attention's weights and of the attention that keys receive.

The domain and the bound, derived, are `attention_weights_domain`; the properties of
`attention_weights_properties` hold for any correct implementation.
"""

from __future__ import annotations

from typing import Any

from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.attention_domain import MODELS
from twofold.core.verify.contracts.attention_weights_domain import (
    LSES,
    Case,
    Inputs,
    cases,
    inputs,
    run,
    small,
    truth,
)
from twofold.core.verify.contracts.attention_weights_properties import PROPERTIES
from twofold.kernels.attention_weights_tiles import ENTRIES

__all__ = ["CONTRACT", "LSES", "Case", "Inputs", "inputs", "run", "small", "truth"]

EVERYTHING: dict[str, Any] = {
    "groups": 3, "window_size": (64, 0), "softcap": 30.0, "alibi": "H", "bias": "1HMN",
    "mask": "B1MN", "key_lengths": True,
}  # fmt: skip

PACKED: dict[str, Any] = {"batch": 4, "heads": 2, "groups": 2, "packed": True}
PACKINGS: tuple[dict[str, Any], ...] = (
    {"causal": True, "alibi": "BH"},
    {"window_size": (17, 15), "bias": "BHMN", "first_row": 20, "queries": 10},
    {"causal": "top-left", "mask": "B1MN", "lse": "lost"},
    {"key_lengths": True, "rotary": "half", "head_dim": 70, "seqlen_q": 20, "seqlen_k": 18},
    {"block_mask": "BHMN", "block_size": (17, 24), "first_row": 39, "queries": 1},
)

CONTRACT = Contract(
    operator="attention_weights",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"weights": "forward", "received": "forward"},
    pinned=(
        *(
            Case(
                dtype="float32" if element_size == 4 else ("float16", "bfloat16")[i % 2],
                seqlen_q=tile.block_m + 1,
                seqlen_k=2 * tile.block_n + 1,
                head_dim=head_dim,
                causal=i % 4 != 3,
                key_lengths=i % 2 == 1,
                tile=i,
            )
            for i, ((element_size, head_dim), tile) in enumerate(ENTRIES)
        ),
        # The diagonal goes through the last key of a tile, of the one before it, and beside both.
        *(Case(seqlen_q=3, seqlen_k=n, causal=True) for n in (32, 33, 34, 64, 65, 66)),
        # So do both edges of a window, for queries the first of which is at the edge of a tile.
        *(
            Case(
                seqlen_q=97,
                seqlen_k=97 + n,
                window_size=window,
                groups=2,
                heads=2,
                batch=2,
                first_row=first,
                queries=queries,
            )
            for n, window, first, queries in (
                (0, (32, 32), 31, 33),
                (1, (33, 31), 32, 65),
                (32, (95, 63), 33, 32),
                (-1, (0, 0), 0, 64),
            )
        ),
        Case(seqlen_q=70, seqlen_k=40, window_size=(20, None), causal="top-left", sinks=True),
        Case(seqlen_q=70, seqlen_k=40, window_size=(20, None)),
        # One query, the last or one among others, with everything that depends on its number.
        *(
            Case(
                batch=2,
                heads=2,
                seqlen_q=67,
                seqlen_k=71,
                first_row=first,
                queries=1,
                bias=axes,
                mask=axes,
                alibi="BH",
                causal=causal,
            )
            for first, causal, axes in ((-1, True, "BHMN"), (35, "top-left", "MN"))
        ),
        # Some queries, and one row of a bias and a mask for all, with an axis for it or without.
        *(
            Case(seqlen_q=9, seqlen_k=7, bias=axes, mask=axes, first_row=3, queries=4)
            for axes in ("1N", "N")
        ),
        Case(batch=2, heads=2, seqlen_q=5, seqlen_k=9, softcap=2.0, key_lengths=True, lse="lost"),
        # Some of the rotated queries, and all.
        Case(batch=2, seqlen_q=9, seqlen_k=5, rotary="half", first_row=3, queries=4),
        Case(heads=2, groups=2, seqlen_q=5, seqlen_k=9, rotary="interleaved", head_dim=12),
        Case(seqlen_q=5, seqlen_k=9, rotary="half", head_dim=140, dtype="bfloat16"),
        *(Case(dtype=d, seqlen_q=3, seqlen_k=5, head_dim=512) for d in ("float32", "bfloat16")),
        # Some queries, in other blocks than the first ones.
        Case(
            batch=2,
            heads=2,
            seqlen_q=40,
            seqlen_k=67,
            block_mask="BHMN",
            block_size=32,
            first_row=35,
            queries=2,
        ),
        # Packed sequences of every kind, longer and shorter than a tile, and empty.
        *(
            Case(**{"seqlen_q": 40, "seqlen_k": 37, **PACKED, **how}, seed=seed)
            for seed, how in enumerate(PACKINGS)
        ),
    ),
    properties=PROPERTIES,
    small=small,
    # As a person calls it, with the tiles that are chosen: everything, and the plainest call where
    # products are taken in another way; then unaligned rows.
    compiled=tuple(
        Case(dtype=dtype, allow_tf32=allow_tf32, head_dim=head_dim, **MODELS, **flags)
        for head_dims, precisions, flags in (
            ((16, 32, 64, 128, 256), (("bfloat16", False), ("float32", False)), EVERYTHING),
            ((64,), (("float16", False), ("float32", True)), {}),
            ((512,), (("bfloat16", False), ("float32", False)), EVERYTHING),
            ((40, 136), (("bfloat16", False), ("float32", False)), EVERYTHING),
            ((64, 128), (("bfloat16", False), ("float32", False)), {"rotary": "half"}),
            ((64, 128), (("bfloat16", False), ("float32", False)), {**EVERYTHING, "packed": True}),
        )
        for head_dim in head_dims
        for dtype, allow_tf32 in precisions
    ),
)
