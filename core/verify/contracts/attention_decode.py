"""The contract of decoding with a cache.

The domain is `attention_decode_domain`, the bound `attention_decode_bound`; the properties of
`attention_decode_properties` hold for any correct implementation.
"""

from __future__ import annotations

from typing import Any

from twofold.core.verify.contract import Contract
from twofold.core.verify.contracts.attention_decode_bound import truth
from twofold.core.verify.contracts.attention_decode_domain import (
    LAYOUTS,
    Case,
    Inputs,
    cases,
    inputs,
    paged,
    run,
    small,
    table,
    whole,
)
from twofold.core.verify.contracts.attention_decode_properties import PROPERTIES
from twofold.core.verify.contracts.attention_scoring import SQUASHED
from twofold.kernels.attention_decode_tiles import ENTRIES, FEW_ROWS, MOST_SPLIT, SPLIT, TILES

__all__ = [
    "CONTRACT", "LAYOUTS", "SQUASHED", "Case", "Inputs", "inputs", "paged", "run", "small", "table",
    "truth", "whole",
]  # fmt: skip

LEAST: dict[str, Any] = {}
PAGED: dict[str, Any] = {"page_size": 16}
EVERYTHING: dict[str, Any] = {
    "page_size": 16, "causal": True, "window_size": (64, 0), "softcap": 30.0, "alibi": "H",
    "sinks": True,
}  # fmt: skip
MASKED: dict[str, Any] = {
    **EVERYTHING, "bias": "BHMN", "mask": "B1MN", "block_mask": "1HMN", "block_size": 16,
    "rotary": "half", "packed": True, "dropout_p": 0.1,
}  # fmt: skip
# Parts, pages and blocks that never end in the same place.
UNEVEN: dict[str, Any] = {
    "groups": 2, "capacity": 37, "split": 16, "page_size": 5, "causal": True, "bias": "BHMN",
    "mask": "B1MN", "block_mask": "1HMN", "block_size": (2, 7), "rotary": "half",
}  # fmt: skip
# Every tile: with everything but masks and positions, with those, and the commonest calls; then
# unaligned rows.
COMPILED: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
    ("bfloat16", 128, 1, LEAST),
    ("bfloat16", 128, 1, PAGED),
    *(
        (
            "float32" if size == 4 else "float16",
            head_dim,
            16 if most_rows > FEW_ROWS else 2,
            flags,
        )
        for most_rows, size, head_dim in TILES
        for flags in (EVERYTHING, MASKED)
    ),
    *(
        (dtype, 200, 16, flags)
        for dtype in ("bfloat16", "float32")
        for flags in (EVERYTHING, MASKED)
    ),
)

CONTRACT = Contract(
    operator="attention_decode",
    cases=cases(),
    inputs=inputs,
    run=run,
    truth=truth,
    passes={"out": "forward", "lse": "forward"},
    pinned=(
        Case(head_dim=512),  # the most that there is a tile for
        # A block of rows and one row more; parts of two tiles, the second with a single key.
        *(
            Case(
                dtype="float32" if element_size == 4 else ("float16", "bfloat16")[i % 2],
                batch=1,
                heads=3,
                groups=3,
                queries=-(-(tile.block_r + 1) // 3),
                capacity=4 * tile.block_n + 1,
                split=2 * tile.block_n,
                page_size=16 if i % 2 else 0,
                full=True,
                head_dim=head_dim,
                causal=i % 3 != 2,
                rotary=(None, "half", "interleaved")[i // 2 % 3],
                tile=i,
            )
            for i, ((_, element_size, head_dim), tile) in enumerate(ENTRIES)
        ),
        Case(batch=1, heads=1, capacity=SPLIT + 1, full=True),
        # One row more than are split.
        Case(batch=1, heads=1, queries=MOST_SPLIT + 1, capacity=SPLIT + 1, full=True),
        Case(batch=1, heads=1, head_dim=256),
        # A sequence ends with a part, a key before it and after it.
        *(Case(capacity=n, split=16, full=True) for n in (15, 16, 17, 31, 32, 33)),
        # Parts that no query sees, or only some do, whose tiles begin within the part before.
        *(
            Case(capacity=99, split=split, queries=5, window_size=window, full=True, sinks=sinks)
            for split, window, sinks in (
                (16, (10, 0), False),
                (7, (3, 2), True),
                (37, (None, 1), False),
                (16, (40, None), True),
            )
        ),
        # The second block of rows sees keys of other tiles than the first: later ones, and ones
        # that a row with a larger number would not see.
        Case(batch=1, heads=1, queries=40, capacity=70, full=True, causal=True, split=32),
        Case(
            batch=1,
            heads=9,
            groups=9,
            queries=2,
            capacity=70,
            full=True,
            window_size=(6, 0),
            tile=list(TILES).index((FEW_ROWS, 4, 64)),
        ),
        # Queries before the first key, a block of rows of them; sequences without a key.
        Case(batch=1, capacity=3, queries=7, full=True, causal=True),
        Case(batch=1, heads=1, queries=80, capacity=70, full=True, window_size=(0, 0)),
        Case(batch=8, capacity=1, queries=2, sinks=True, page_size=1),
        Case(batch=2, heads=6, groups=3, queries=2, capacity=40, softcap=2.0, alibi="BH", split=16),
        Case(
            batch=2,
            heads=4,
            groups=2,
            queries=3,
            capacity=40,
            score_mod=SQUASHED,
            split=16,
            page_size=5,
        ),
        # A bias and masks over two blocks of rows, over parts, and over pages with room to spare.
        Case(heads=2, queries=9, **UNEVEN),
        *(
            Case(
                heads=4, groups=2, queries=3, capacity=20, bias=axes, block_mask=axes, block_size=2
            )
            for axes in ("1HM1", "B11N")
        ),
        # A block with more rows than there are queries.
        Case(heads=4, groups=2, queries=2, capacity=20, block_mask="BHMN", block_size=2),
        # The last key ends a block.
        *(
            Case(capacity=n, block_mask="BHMN", block_size=8, seed=s)
            for n in (8, 40)
            for s in (0, 1)
        ),
        Case(heads=4, capacity=9, page_size=2),  # more heads than keys in a page
        Case(batch=1, capacity=3, page_size=4, seed=1),  # one page, which no sequence has
        # Tiles of keys after the first, in live blocks or not, one with only a block's last key.
        Case(batch=2, heads=4, capacity=300, split=300, block_mask="BHMN", block_size=(1, 65)),
        # Sequences with a prompt, one token or no query: blocks of rows that end within one.
        Case(batch=4, heads=4, queries=19, packed=True, dropout_p=0.3, seed=1, **UNEVEN),
        Case(
            batch=5,
            heads=3,
            groups=3,
            queries=23,
            capacity=40,
            window_size=(6, 0),
            sinks=True,
            score_mod=SQUASHED,
            alibi="BH",
            packed=True,
            dropout_p=0.3,
            split=7,
            seed=2,
        ),
        Case(batch=4, queries=1, capacity=9, packed=True, head_dim=300, rotary="interleaved"),
        # Queries before the first key are not turned, and see all keys.
        Case(capacity=3, queries=7, full=True, rotary="interleaved", seed=1),
    ),
    properties=PROPERTIES,
    small=small,
    compiled=tuple(
        Case(
            dtype=dtype,
            heads=16,
            groups=8,
            queries=queries,
            capacity=32,
            full=True,
            head_dim=head_dim,
            layout="heads inside",
            **flags,
        )
        for dtype, head_dim, queries, flags in COMPILED
    ),
)
