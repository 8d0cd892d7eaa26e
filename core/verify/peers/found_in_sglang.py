"""What judging SGLang's functions found; `findings` says what the kinds mean."""

from __future__ import annotations

from twofold.core.verify.peers.finding import (
    ANY,
    FAULT,
    GATE,
    HALVES,
    OF_GATES,
    PRECISION,
    Known,
)

_WRAPS = "int32 overflow in mul"

FOUND = tuple(
    Known(*entry)
    for entry in (
        (
            "sglang decode", "float16", ANY, FAULT,
            "products of q and k are in their dtype: past 65504 they are infinite, and the output "
            "is NaN",
            "sglang_decode_products", "nan",
        ),
        (
            "sglang decode", HALVES, "out, nobody learns", PRECISION,
            "each product of q and k is rounded to their dtype before all are added up in float32; "
            "where they cancel, the score is that rounding. The kernel of heads that share keys "
            "has exact products",
            "sglang_decode_products",
        ),
        (
            "sglang verify", ANY, ANY, FAULT,
            "of a sequence without keys before its new ones all splits have the log-sum-exp −∞, "
            "and −∞ − (−∞) is NaN; the kernel that it stands in for has the right output",
            "sglang_verify_no_prefix", "nan",
        ),
        (
            "sglang prefill", ANY, "out", FAULT,
            "numbers of tokens and heads are multiplied with their strides in 32 bits: past 2³¹ "
            "elements offsets wrap around, and other memory is read",
            "sglang_prefill_far", _WRAPS,
        ),
        (
            "sglang rms_norm, gemma", ANY, "out", FAULT,
            "numbers of rows are multiplied with their stride in 32 bits: past 2³¹ elements "
            "offsets wrap around, and other memory is read",
            "sglang_gemma_norm_far", _WRAPS,
        ),
        (
            "sglang rotary, interleaved", ANY, ANY, FAULT,
            "lanes that turn nothing, as those beyond a head of no power of two, load the first "
            "position's cosines and sines, which are behind its row, and at the last position "
            "behind the table",
            "sglang_rotary_past_end", "load from cos_sin_cache_ptr",
        ),
        *(
            (
                f"sglang rotary, {how}", HALVES,
                "q, k, norms, relative position, conjugation inverts, nobody learns", PRECISION,
                "products and sums are in the dtype of the table, which its server casts to that "
                "of the queries, where they cancel as well",
                "sglang_rotary_half",
            )
            for how in ("sections", "interleaved", "interleaved, full blocks", "ernie")
        ),
        (
            "sglang geglu", HALVES, f"out, nobody learns, {OF_GATES}", PRECISION, GATE,
            "sglang_geglu_half",
        ),
    )
)  # fmt: skip
