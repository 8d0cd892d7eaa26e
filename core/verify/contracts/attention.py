"""The contract of attention.

The domain is in `attention_domain`, the bound in `attention_bound`. The properties in
`attention_properties` hold for any correct implementation, and together they catch a faulty one
without knowing the truth, hence at any size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twofold.core.verify import domains
from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.attention_domain import (
    LAYOUTS,
    MASKS,
    MODELS,
    Case,
    Inputs,
    cases,
    inputs,
    place,
    place_mask,
    placed,
    problem,
    run,
    scale,
    small,
    truth,
)
from twofold.core.verify.contracts.attention_packed import padded, repacked
from twofold.core.verify.contracts.attention_properties import PROPERTIES
from twofold.core.verify.contracts.attention_scoring import SQUASHED, STEEP, Scoring
from twofold.kernels.attention_tiles import ENTRIES

__all__ = [
    "CONTRACT", "LAYOUTS", "MASKS", "SQUASHED", "Case", "Inputs", "Scoring", "inputs",
    "padded", "place", "place_mask", "placed", "problem", "repacked", "run", "scale", "small",
    "truth", "with_score_mod",
]  # fmt: skip

LEAST: dict[str, Any] = {}
DROPOUT: dict[str, Any] = {"dropout_p": 0.1, "dlse": True}
EVERYTHING: dict[str, Any] = {"dropout_p": 0.1, "mask": "B1MN", "key_lengths": True}
BLOCKS: dict[str, Any] = {"block_mask": "1HMN", "block_size": 64, "groups": 3}
PACKED: dict[str, Any] = {**EVERYTHING, "packed": True, "groups": 3}
ROTARY: dict[str, Any] = {"rotary": "half", "dropout_p": 0.1, "groups": 3}
NEIGHBOURS: dict[str, Any] = {"rotary": "interleaved"}
# Lengths between which Hopper's tables differ, and at which its own kernel is the faster one.
SHORT: dict[str, Any] = {"seqlen_q": 64, "seqlen_k": 64}
LONG: dict[str, Any] = {"seqlen_q": 144, "seqlen_k": 144}
LONGEST: dict[str, Any] = {"seqlen_q": 1024, "seqlen_k": 1024}
SHARED: dict[str, Any] = {"groups": 3}
APART: dict[str, Any] = {"packed": True}
SCORES: dict[str, Any] = {
    "window_size": (64, 0), "softcap": 30.0, "alibi": "H", "bias": "1HMN", "sinks": True,
    "groups": 3,
}  # fmt: skip

PACKINGS: tuple[dict[str, Any], ...] = (
    {"causal": True, "dropout_p": 0.5},
    {"window_size": (17, 15), "bias": "BHMN"},
    {"causal": "top-left", "alibi": "BH", "mask": "B1MN"},
    {"score_mod": SQUASHED, "sinks": True, "key_lengths": True},
    {"causal": True, "bias": "11M1", "dropout_p": 0.1},
    {"causal": True, "block_mask": "BHMN", "block_size": (17, 24), "bias": "B1MN"},
)

# Angles and lengths are strided, too.
STRIDED: dict[str, Any] = {
    "batch": 2, "heads": 2, "groups": 2, "bias": "1HMN", "causal": True, "key_lengths": True,
    "layout": "strided",
}  # fmt: skip
ROTATED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("half", STRIDED),
    ("interleaved", {"batch": 2, "head_dim": 12, "dtype": "bfloat16"}),
    ("half", {"batch": 3, "packed": True, "dtype": "float16", "head_dim": 10}),
    ("half", {"head_dim": 260, "seqlen_q": 3, "seqlen_k": 5}),
    ("interleaved", {"head_dim": 260, "seqlen_q": 3, "seqlen_k": 5, "bias": "MN"}),
)

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
        "dbias": "backward",
        "dsinks": "backward",
    },
    pinned=(
        *(
            Case(
                dtype="float32" if element_size == 4 else ("float16", "bfloat16")[i % 2],
                # Beyond 256 features, a pair is costly.
                seqlen_q=tile.block_m + 1 if head_dim <= 256 else 5,
                seqlen_k=(2 if head_dim <= 256 else 1) * tile.block_n + 1,
                head_dim=head_dim,
                causal=i % 4 != 3,
                key_lengths=i % 2 == 1,
                dropout_p=0.1,
                dlse=True,
                tile=i,
            )
            for i, ((_, element_size, head_dim), tile) in enumerate(ENTRIES)
        ),
        # The diagonal goes through the last key of a tile, of the one before it, and beside both.
        *(Case(seqlen_q=3, seqlen_k=n, causal=True) for n in (16, 17, 18, 32, 33, 34)),
        # So do both edges of a window.
        *(
            Case(seqlen_q=49, seqlen_k=49 + n, window_size=window, groups=2, heads=2, dlse=True)
            for n, window in ((0, (16, 16)), (1, (17, 15)), (16, (47, 31)), (-1, (0, 0)))
        ),
        # More keys than the queries see, and queries past the last key that see some, or none.
        *(
            Case(seqlen_q=m, seqlen_k=n, window_size=(left, None), causal="top-left", sinks=True)
            for m, n, left in ((40, 70, 20), (100, 33, 40))
        ),
        *(Case(seqlen_q=9, seqlen_k=n, window_size=(2**31 - 2,) * 2) for n in (5, 9, 17)),
        # A bias, and packed sequences, smaller than a tile: most faults show in these already.
        *(
            Case(batch=2, heads=2, seqlen_q=5, seqlen_k=9, bias=axes, dropout_p=0.5)
            for axes in ("BHMN", "1H1N")
        ),
        Case(
            batch=3,
            heads=2,
            groups=2,
            seqlen_q=7,
            seqlen_k=9,
            packed=True,
            causal=True,
            dlse=True,
            bias="BHMN",
        ),
        # Every way in which a bias is broadcast, over more than a tile; where causal, only the last
        # query sees the first key of the last tile.
        *(
            Case(
                batch=2, heads=2, seqlen_q=35, seqlen_k=49, bias=axes, dropout_p=0.5, causal=causal
            )
            for axes, causal in (
                ("BHMN", True),
                ("1HM1", False),
                ("B11N", False),
                ("HMN", False),
                ("M1", True),
                ("N", True),
                ("", False),
            )
        ),
        Case(seqlen_q=67, seqlen_k=5, bias="N", logits=300.0),  # more than two tiles of queries
        # In half precision a bias and slopes are known to their last bit.
        Case("bfloat16", heads=2, seqlen_q=5, seqlen_k=9, bias="N", alibi="H"),
        Case(batch=2, heads=2, seqlen_q=5, seqlen_k=9, softcap=2.0, alibi="BH", sinks=True),
        Case(seqlen_q=3, seqlen_k=5, softcap=2.0, logits=300.0),  # e²ᵃ of tanh a is infinite
        # More features than a program sums at a time, and where the tile tables change.
        Case(seqlen_q=3, seqlen_k=5, head_dim=257, causal=True),
        *(Case(seqlen_q=2, seqlen_k=3, head_dim=head_dim) for head_dim in (256, 512)),
        # Features in two tiles.
        *(
            Case(
                dtype=dtype,
                seqlen_q=35,
                seqlen_k=67,
                head_dim=head_dim,
                layout="heads inside",
                causal=causal,
                dlse=True,
                sinks=True,
            )
            for dtype, head_dim, causal in (
                ("bfloat16", 64, True),
                ("bfloat16", 80, True),
                ("float16", 80, False),
                ("bfloat16", 96, False),
                ("float16", 96, True),
            )
        ),
        # In some batches all keys are padding.
        Case(batch=4, seqlen_q=3, seqlen_k=1, key_lengths=True, dlse=True),
        # With one query, a key's gradient is a single product, which only the cast of dS may move;
        # times the scale, dS would underflow.
        Case("bfloat16", seqlen_q=1, seqlen_k=200),
        Case("float16", seqlen_q=1, seqlen_k=20, softmax_scale=1e-5),
        # In half precision a sink is known to its last bit.
        Case(dtype="bfloat16", heads=3, seqlen_q=5, seqlen_k=3, layout="strided", sinks=True),
        # Its gradient is known to its last bit where the output is all but 0.
        Case(
            dtype="bfloat16",
            batch=4,
            heads=3,
            seqlen_q=5,
            seqlen_k=3,
            magnitude="tiny",
            sinks=True,
            dlse=True,
        ),
        Case(batch=2, heads=2, seqlen_q=5, seqlen_k=9, softcap=2.0, score_mod=SQUASHED),
        Case(batch=2, heads=2, seqlen_q=9, seqlen_k=5, score_mod=SQUASHED, key_lengths=True),
        # Rotary positions: on some of many features, in both forms, packed or not.
        *(
            Case(**{"seqlen_q": 17, "seqlen_k": 35, **how}, rotary=form, seed=seed)
            for seed, (form, how) in enumerate(ROTATED)
        ),
        # Blocks smaller and larger than a tile, for tiles that a window cuts and does not cut.
        *(
            Case(
                batch=2,
                heads=2,
                groups=2,
                seqlen_q=65,
                seqlen_k=84,
                dlse=True,
                block_mask=axes,
                block_size=size,
                window_size=window,
                bias=bias,
            )
            for axes, size, window, bias in (
                ("BHMN", (5, 7), (40, 3), "HMN"),
                ("1HMN", (48, 33), None, "1M1"),
                ("MN", 32, (17, 60), "B11N"),
                ("B1M1", (20, 1), None, None),
            )
        ),
        # More tiles of 16 keys, dq's, than are listed at once, the last block of which may live.
        Case(seqlen_q=3, seqlen_k=2048, block_mask="MN", block_size=(3, 64)),
        # A last block that has room for three more tiles.
        Case(batch=2, heads=3, seqlen_q=3, seqlen_k=65, block_mask="BHMN", block_size=(3, 64)),
        Case(
            batch=2,
            heads=4,
            seqlen_q=20,
            seqlen_k=400,
            block_mask="BHMN",
            block_size=(20, 7),
        ),
        # Packed sequences of every kind, longer and shorter than a tile, and empty.
        *(
            Case(
                batch=5,
                heads=4,
                groups=2,
                seqlen_q=67,
                seqlen_k=49,
                packed=True,
                dlse=True,
                seed=seed,
                **how,
            )
            for seed, how in enumerate(PACKINGS)
        ),
        # Where a query may not attend, the slope of a function may be anything.
        Case(seqlen_q=5, seqlen_k=5, score_mod=STEEP, causal="top-left"),
        # More of everything than elsewhere, scores with their sign turned, and everything at once.
        Case(batch=5, heads=9, seqlen_q=3, seqlen_k=5),
        Case("float16", seqlen_q=2, seqlen_k=1025),
        Case(seqlen_q=3, seqlen_k=5, softmax_scale=-0.7),
        Case(
            batch=2,
            heads=4,
            groups=2,
            seqlen_q=35,
            seqlen_k=49,
            causal=True,
            window_size=(20, 3),
            softcap=2.0,
            alibi="BH",
            bias="BHMN",
            sinks=True,
            mask="B11N",
            key_lengths=True,
            dropout_p=0.2,
            dlse=True,
        ),
        # Gradients written into arrays laid out like the inputs, and each unlike the others.
        *(
            Case(dtype, batch=2, heads=4, groups=2, seqlen_q=5, seqlen_k=9, **how, into="own")
            for dtype, how in (
                ("float32", {"layout": "heads inside"}),
                ("bfloat16", {"layout": domains.MIXED, "rotary": "half", "packed": True}),
                ("float16", {"layout": domains.MIXED, "dlse": True}),
                ("float32", {"layout": "transposed", "causal": True}),
            )
        ),
        # Draws of keys far apart.
        Case(seqlen_k=97, dropout_p=0.5),
        # The draw of the first key is just enough, that of the second.
        *(Case(dropout_p=draw / 65536) for draw in (59605, 26151)),
    ),
    properties=PROPERTIES,
    small=small,
    # As models call it, with the tiles that are chosen: the plainest call, dropout, what else is
    # done to scores, everything (from 64 features on in packed sequences), also in unaligned rows;
    # rotary positions, and blocks; heads that share keys, and other lengths.
    compiled=tuple(
        Case(dtype=dtype, allow_tf32=allow_tf32, head_dim=head_dim, **(MODELS | flags))
        for head_dims, precisions in (
            (
                (16, 32, 64, 128, 256),
                (
                    ("float16", False, (LEAST,)),
                    ("bfloat16", False, (DROPOUT, SCORES)),
                    ("float32", False, (DROPOUT, SCORES)),
                    ("float32", True, (LEAST,)),
                ),
            ),
            (
                (8, 16, 24, 32, 40, 72, 136),
                (("bfloat16", False, (EVERYTHING,)), ("float32", False, (EVERYTHING,))),
            ),
            (
                (64, 128, 256),
                (
                    ("bfloat16", False, (PACKED, ROTARY, NEIGHBOURS)),
                    ("float32", False, (PACKED, ROTARY)),
                ),
            ),
            ((64, 128), (("bfloat16", False, (BLOCKS,)), ("float32", False, (BLOCKS,)))),
            ((512,), (("bfloat16", False, (EVERYTHING,)), ("float32", False, (SCORES, PACKED)))),
            (
                (16, 32, 64, 128, 256),
                (
                    ("bfloat16", False, (SHARED, SHORT, LONG, LONG | SHARED, DROPOUT | SHARED)),
                    ("float32", False, (SHARED, DROPOUT | SHARED)),
                ),
            ),
            (
                (64, 128),
                (
                    ("bfloat16", False, (LONGEST, LONGEST | {"causal": False})),
                    ("bfloat16", False, (APART, APART | SHARED)),
                    ("float16", False, (LONGEST,)),
                ),
            ),
            ((256,), (("bfloat16", False, (APART | DROPOUT | SHARED,)),)),
            ((80, 96), (("float16", False, (LEAST,)),)),
            ((80, 96), (("bfloat16", False, (SHARED, SHORT, LONG, LONG | SHARED, APART)),)),
            ((32,), (("bfloat16", False, (ROTARY,)),)),
        )
        for head_dim in head_dims
        for dtype, allow_tf32, variants in precisions
        for flags in variants
    ),
)


def with_score_mod(scoring: Scoring) -> Contract:
    """Return the contract of attention with a function of the scores."""

    def having(case: Case) -> Case:
        return replace(case, score_mod=scoring)

    return replace(
        CONTRACT,
        cases=CONTRACT.cases.map(having),
        pinned=(Case(batch=2, heads=2, seqlen_q=67, seqlen_k=71, score_mod=scoring),),
        small=lambda case: having(small(case)),
        compiled=tuple(having(case) for case in CONTRACT.compiled),
    )
