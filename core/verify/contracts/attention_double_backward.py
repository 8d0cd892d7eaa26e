"""The contract of the backward of attention's backward.

The domain is `attention_double_backward_domain`, the bound, derived,
`attention_double_backward_bound`; the properties of `attention_double_backward_properties` hold for
any correct implementation.
"""

from __future__ import annotations

from typing import Any

from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.attention_domain import LAYOUTS, MODELS
from twofold.core.verify.contracts.attention_double_backward_domain import (
    Case,
    Inputs,
    cases,
    inputs,
    run,
    small,
    truth,
)
from twofold.core.verify.contracts.attention_double_backward_properties import PROPERTIES
from twofold.core.verify.contracts.attention_scoring import SMOOTH, STEEP
from twofold.kernels.attention_double_backward_tiles import ENTRIES

__all__ = ["CONTRACT", "Case", "Inputs", "inputs", "run", "small", "truth"]

LEAST: dict[str, Any] = {}
EVERYTHING: dict[str, Any] = {
    "dropout_p": 0.1, "mask": "B1MN", "key_lengths": True, "dlse": True,
}  # fmt: skip
PACKED: dict[str, Any] = {**EVERYTHING, "packed": True, "groups": 3}
SCORES: dict[str, Any] = {
    "window_size": (64, 0), "softcap": 30.0, "score_mod": SMOOTH, "alibi": "H", "bias": "1HMN",
    "sinks": True, "groups": 3,
}  # fmt: skip

PACKINGS: tuple[dict[str, Any], ...] = (
    {"causal": True, "dropout_p": 0.5},
    {"window_size": (17, 15), "bias": "BHMN", "key_lengths": True},
    {"causal": "top-left", "alibi": "BH", "mask": "B1MN", "softcap": 2.0, "sinks": True},
)

ROTATED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("half", {"batch": 2, "heads": 2, "groups": 2, "causal": True, "dlse": True}),
    ("interleaved", {"batch": 2, "head_dim": 12, "dtype": "bfloat16", "softcap": 2.0}),
    ("half", {"batch": 3, "packed": True, "dtype": "float16", "head_dim": 10}),
)

CONTRACT = Contract(
    operator="attention_double_backward",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes=dict.fromkeys(("dq", "dk", "dv", "ddout", "ddlse"), "backward"),
    pinned=(
        # The gradients of dq, dk and dv are laid out unlike q, k and v.
        *(Case(heads=2, seqlen_q=5, seqlen_k=7, head_dim=16, layout=x) for x in LAYOUTS[1:]),
        *(
            Case(
                dtype=("float32", "bfloat16", "float16")[i % 3],
                heads=1 + i % 2,
                groups=1 + i % 2,
                seqlen_q=tile.block_m + 1,
                seqlen_k=2 * tile.block_n + 1,
                head_dim=head_dim,
                causal=i % 3 != 1,
                key_lengths=i % 2 == 1,
                dropout_p=0.1,
                dlse=True,
                tile=i,
            )
            for i, (head_dim, tile) in enumerate(ENTRIES)
        ),
        # The diagonal goes through the last key of a tile, of the one before it, and beside both.
        *(Case(seqlen_q=3, seqlen_k=n, causal=True) for n in (16, 17, 18, 32, 33, 34)),
        # So do both edges of a window.
        *(
            Case(seqlen_q=49, seqlen_k=49 + n, window_size=window, groups=2, heads=2, dlse=True)
            for n, window in ((0, (16, 16)), (1, (17, 15)), (-1, (0, 0)))
        ),
        Case(seqlen_q=20, seqlen_k=35, window_size=(20, None), causal="top-left", sinks=True),
        Case(
            batch=2, heads=4, groups=2, seqlen_q=9, seqlen_k=13, head_dim=5, alibi="BH",
            bias="BHMN", mask="B1MN", key_lengths=True, sinks=True, dropout_p=0.5, dlse=True,
        ),
        Case(heads=2, seqlen_q=5, seqlen_k=9, softcap=2.0, alibi="H", dropout_p=0.5),
        Case(
            batch=2, heads=2, seqlen_q=5, seqlen_k=9, softcap=2.0, score_mod=SMOOTH, dlse=True,
            key_lengths=True,
        ),
        Case(batch=2, heads=2, seqlen_q=9, seqlen_k=5, score_mod=SMOOTH, key_lengths=True),
        # Where a query may not attend, the derivatives may be anything; they depend on its place.
        Case(seqlen_q=35, seqlen_k=35, score_mod=STEEP, window_size=(8, 0)),
        # Three slices of the features.
        Case(dtype="bfloat16", seqlen_q=5, seqlen_k=7, head_dim=257, causal=True),
        # Rotary positions, in both forms, packed or not.
        *(
            Case(**{"seqlen_q": 17, "seqlen_k": 21, **how}, rotary=form, seed=seed)
            for seed, (form, how) in enumerate(ROTATED)
        ),
        # Packed sequences of every kind, longer and shorter than a tile, and empty.
        *(
            Case(
                batch=5, heads=4, groups=2, seqlen_q=35, seqlen_k=19, packed=True, dlse=True,
                seed=seed, **how,
            )
            for seed, how in enumerate(PACKINGS)
        ),
    ),
    properties=PROPERTIES,
    small=small,
    # As models call it, with the tiles that are chosen: each with everything, some packed; with
    # what else is done to scores, in unaligned rows; and the plainest call.
    compiled=tuple(
        Case(dtype=dtype, allow_tf32=allow_tf32, head_dim=head_dim, **MODELS, **flags)
        for head_dims, precisions in (
            (
                (16, 32, 256),
                (("bfloat16", False, EVERYTHING), ("float32", False, EVERYTHING)),
            ),
            ((72,), (("bfloat16", False, SCORES), ("float32", False, SCORES))),
            ((256,), (("bfloat16", False, SCORES),)),
            ((64,), (("float16", False, LEAST), ("float32", True, LEAST))),
            ((64, 128), (("bfloat16", False, PACKED), ("float32", False, PACKED))),
            ((512,), (("bfloat16", False, PACKED), ("float32", False, SCORES))),
        )
        for head_dim in head_dims
        for dtype, allow_tf32, flags in precisions
    ),
)  # fmt: skip
