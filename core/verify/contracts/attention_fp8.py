"""The contract of attention in 8 bits.

The domain and the bound, derived, are `attention_fp8_domain`; the properties of
`attention_fp8_properties` hold for any correct implementation.
"""

from __future__ import annotations

from typing import Any

from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.attention_domain import MODELS
from twofold.core.verify.contracts.attention_fp8_domain import (
    SCALES,
    Case,
    Inputs,
    cases,
    inputs,
    run,
    small,
    truth,
)
from twofold.core.verify.contracts.attention_fp8_properties import PROPERTIES
from twofold.core.verify.contracts.attention_scoring import SQUASHED
from twofold.kernels.attention_fp8_tiles import ENTRIES

__all__ = ["CONTRACT", "PRECISIONS", "SCALES", "Case", "Inputs", "inputs", "run", "small", "truth"]

PRECISIONS = (("float32", False), ("float16", False), ("bfloat16", False))  # of the output

LEAST: dict[str, Any] = {}
EVERYTHING: dict[str, Any] = {
    "groups": 3, "window_size": (64, 0), "softcap": 30.0, "alibi": "H", "bias": "1HMN",
    "sinks": True, "mask": "B1MN", "key_lengths": True, "dropout_p": 0.1,
}  # fmt: skip
PACKED: dict[str, Any] = {**EVERYTHING, "packed": True}
ROTARY: dict[str, Any] = {**PACKED, "rotary": "half"}
NEIGHBOURS: dict[str, Any] = {"rotary": "interleaved"}

PACKINGS: tuple[dict[str, Any], ...] = (
    {"causal": True, "dropout_p": 0.5},
    {"window_size": (17, 15), "bias": "BHMN"},
    {"causal": "top-left", "alibi": "BH", "mask": "B1MN"},
    {"score_mod": SQUASHED, "sinks": True, "key_lengths": True},
)

ROTATED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("half", {"batch": 2, "heads": 2, "groups": 2, "bias": "1HMN", "causal": True}),
    ("interleaved", {"batch": 2, "head_dim": 12, "dropout_p": 0.1}),
    ("half", {"batch": 3, "packed": True, "head_dim": 10}),
    ("half", {"head_dim": 260, "seqlen_q": 3, "seqlen_k": 5}),
    ("interleaved", {"head_dim": 260, "seqlen_q": 3, "seqlen_k": 5, "bias": "MN"}),
    ("half", {"magnitude": "mixed rows", "head_dim": 64}),
)

CONTRACT = Contract(
    operator="attention_fp8",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes=dict.fromkeys(("out", "lse", "x8", "scale"), "forward"),
    pinned=(
        *(
            Case(
                dtype=("bfloat16", "float16", "float32")[i % 3],
                heads=2,
                seqlen_q=tile.block_m + 1,
                seqlen_k=2 * tile.block_n + 1,
                head_dim=head_dim,
                causal=i % 4 != 3,
                key_lengths=i % 2 == 1,
                tile=i,
            )
            for i, ((_, head_dim), tile) in enumerate(ENTRIES)
        ),
        # The diagonal goes through the last key of a tile, of the one before it, and beside both.
        *(Case(seqlen_q=3, seqlen_k=n, causal=True) for n in (63, 64, 65, 66, 128)),
        # So do both edges of a window.
        *(
            Case(seqlen_q=131, seqlen_k=131 + n, window_size=window, groups=2, heads=2)
            for n, window in ((0, (64, 64)), (1, (65, 63)), (64, (127, 63)), (-1, (0, 0)))
        ),
        Case(seqlen_q=70, seqlen_k=40, window_size=(20, None), causal="top-left", sinks=True),
        # Every way in which scales are broadcast, with heads that share keys.
        *(
            Case(batch=2, heads=4, groups=2, seqlen_q=5, seqlen_k=7, scales=axes, dtype="float32")
            for axes in SCALES
        ),
        Case(batch=2, heads=2, seqlen_q=5, seqlen_k=9, softcap=2.0, alibi="BH", sinks=True),
        Case(batch=2, heads=2, seqlen_q=9, seqlen_k=5, score_mod=SQUASHED, key_lengths=True),
        # In some batches all keys are padding; a sink in half precision.
        Case(batch=4, seqlen_q=3, seqlen_k=1, key_lengths=True, dtype="float16"),
        Case(heads=2, seqlen_q=5, seqlen_k=3, sinks=True),
        # Rows that are copied because they are long and unaligned.
        *(
            Case(heads=2, groups=2, seqlen_q=3, seqlen_k=5, head_dim=head_dim, causal=True)
            for head_dim in (136, 257)
        ),
        # Rotary positions: on some features of several chunks, in both forms, packed or not.
        *(
            Case(**{"seqlen_q": 17, "seqlen_k": 70, "dtype": "float32", **how}, rotary=form, seed=i)
            for i, (form, how) in enumerate(ROTATED)
        ),
        # Dropout draws for keys far apart, different in every batch and head.
        Case(batch=2, heads=2, seqlen_q=5, seqlen_k=150, dropout_p=0.5, dtype="float32"),
        # The draw of the first key is just enough, that of the second.
        *(Case(dropout_p=draw / 65536) for draw in (59605, 26151)),
        # Weights that underflow, and values that do, too.
        Case(seqlen_q=5, seqlen_k=200, logits=10.0, dtype="float32"),
        Case(seqlen_q=5, seqlen_k=70, magnitude="mixed rows", dtype="float32"),
        # Blocks smaller and larger than a tile, for tiles that a window cuts and does not cut.
        *(
            Case(
                batch=2,
                heads=2,
                groups=2,
                seqlen_q=139,
                seqlen_k=150,
                block_mask=axes,
                block_size=size,
                window_size=window,
            )
            for axes, size, window in (
                ("BHMN", (5, 27), (40, 3)),
                ("1HMN", (48, 70), None),
                ("B1M1", (20, 1), (9, 60)),
            )
        ),
        # Packed sequences, longer and shorter than a tile, and empty.
        *(
            Case(
                batch=5,
                heads=4,
                groups=2,
                seqlen_q=150,
                seqlen_k=99,
                packed=True,
                seed=seed,
                scales=("BH", "H", "B1")[seed % 3],
                **how,
            )
            for seed, how in enumerate(PACKINGS)
        ),
    ),
    properties=PROPERTIES,
    small=small,
    # As models call it, with the tiles that are chosen: the plainest call, everything, packed
    # sequences, rotary positions; then unaligned rows, and many features.
    compiled=tuple(
        Case(head_dim=head_dim, **{**MODELS, **flags, **how})
        for head_dims, flags, how in (
            ((16, 32, 64, 128, 256), LEAST, {"layout": "contiguous"}),
            ((16, 32, 64, 128, 256), EVERYTHING, {"dtype": "float32"}),
            ((64, 128, 256), PACKED, {"dtype": "float16"}),
            ((32, 64, 128, 256), ROTARY, {}),
            ((64, 128, 256), NEIGHBOURS, {"layout": "contiguous"}),
            ((40, 136), EVERYTHING, {}),
            ((24, 40, 72), ROTARY, {}),
            ((512,), LEAST, {"layout": "contiguous"}),
            ((512,), ROTARY, {}),
        )
        for head_dim in head_dims
    ),
    unsupported={"sm_80": "has no e4m3, which NVIDIA's GPUs have since compute capability 8.9"},
)
