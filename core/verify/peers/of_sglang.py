"""What is judged of SGLang, and what was found; the kinds are in `findings`."""

from __future__ import annotations

from twofold.core.verify.peers.finding import (
    ANY,
    FAULT,
    HALVES,
    PRECISION,
    Known,
)
from twofold.core.verify.peers.peer import IN_TF32, Peer

_SGLANG = "sglang.kernels.ops"

PEERS = (
    Peer(
        "sglang decode", "attention_decode", "sglang:decode", "sglang",
        f"{_SGLANG}.attention.decode_attention.decode_attention_fwd_normal", cost=2,
    ),
    Peer(
        "sglang decode, grouped", "attention_decode", "sglang:decode_grouped", "sglang",
        f"{_SGLANG}.attention.decode_attention.decode_attention_fwd_grouped", IN_TF32, cost=2,
    ),
    Peer(
        "sglang extend", "attention_decode", "sglang:extend", "sglang",
        f"{_SGLANG}.attention.extend_attention.extend_attention_fwd", IN_TF32, cost=2,
    ),
    Peer(
        "sglang extend, unified", "attention_decode", "sglang:extend_unified", "sglang",
        f"{_SGLANG}.attention.extend_attention.extend_attention_fwd_unified", IN_TF32, cost=2,
    ),
    *(
        Peer(
            f"sglang verify{how}", "attention_decode", f"sglang:{function}", "sglang",
            f"{_SGLANG}.attention.verify_splitkv.VerifySplitKV{how}", IN_TF32, cost=2,
        )
        for how, function in (("", "verify"), (", with a prefix", "verify_with_prefix"))
    ),
    Peer(
        "sglang merge", "merge_attention", "sglang:merge", "sglang",
        f"{_SGLANG}.attention.merge_state.merge_state_triton", cost=2,
    ),
    Peer(
        "sglang prefill", "attention", "sglang:prefill", "sglang",
        f"{_SGLANG}.attention.prefill_attention.context_attention_fwd", IN_TF32, cost=2,
    ),
    Peer(
        "sglang rms_norm", "rms_norm", "sglang:rms_norm", "sglang",
        f"{_SGLANG}.layernorm.fused_rmsnorm.fused_rmsnorm", cost=2,
    ),
    Peer(
        "sglang rms_norm, gemma", "rms_norm", "sglang:rms_norm_of_gemma", "sglang",
        f"{_SGLANG}.layernorm.minimax_m3_rmsnorm.gemma_rmsnorm and gemma_fused_add_rmsnorm",
        cost=2,
    ),
    *(
        Peer(
            f"sglang rotary, {how}", "rotary", f"sglang:{function}", "sglang",
            f"{_SGLANG}.attention.rotary_triton.{what}, three positions that are the same", cost=2,
        )
        for how, function, what in (
            ("sections", "rotary", "triton_mrope_fused"),
            ("interleaved", "rotary_interleaved", "triton_mrope_fused"),
            (
                "interleaved, full blocks", "rotary_interleaved_of_full_blocks",
                "triton_mrope_fused, heads of a power of two",
            ),
            ("ernie", "rotary_of_ernie", "triton_ernie45_rope_fused_inplace"),
        )
    ),
    Peer(
        "sglang geglu", "gated_activation", "sglang:geglu", "sglang",
        f"{_SGLANG}.activation.gelu_and_mul_triton.gelu_and_mul_triton", cost=2,
    ),
)  # fmt: skip

_WRAPS = "int32 overflow in mul"

FOUND = tuple(
    Known(*entry)
    for entry in (
        (
            "sglang decode", "float16", ANY, FAULT,
            "q and k are multiplied in their dtype: in float16, products past 65504 are "
            "infinite, and the output is NaN",
            "sglang_decode_products", "nan",
        ),
        (
            "sglang decode", HALVES, "out", PRECISION,
            "each product of q and k is rounded to their dtype before all are added up in "
            "float32; where they cancel, the score is nothing but rounding error. The kernel for "
            "heads that share keys computes exact products",
            "sglang_decode_products",
        ),
        (
            "sglang verify", ANY, ANY, FAULT,
            "for a sequence without keys before its new ones, every split has the log-sum-exp −∞, "
            "and −∞ − (−∞) is NaN; the kernel that it stands in for gives the right output",
            "sglang_verify_no_prefix", "nan",
        ),
        (
            "sglang prefill", ANY, "out", FAULT,
            "token and head numbers are multiplied by their strides in 32 bits: past 2³¹ elements "
            "the offset wraps around, and other memory is read",
            "sglang_prefill_far", _WRAPS,
        ),
        (
            "sglang rms_norm, gemma", ANY, "out", FAULT,
            "row numbers are multiplied by their stride in 32 bits: past 2³¹ elements the offset "
            "wraps around, and other memory is read",
            "sglang_gemma_norm_far", _WRAPS,
        ),
        (
            "sglang rotary, interleaved", ANY, ANY, FAULT,
            "lanes that rotate nothing, such as those past the end of a head whose size is not a "
            "power of two, load cosines and sines by the first of three positions, past the end "
            "of its row: at the last position, past the end of the table",
            "sglang_rotary_past_end", "load from cos_sin_cache_ptr",
        ),
        *(
            (
                f"sglang rotary, {how}", HALVES,
                "q, k, norms, relative position, conjugation inverts", PRECISION,
                "products and sums are computed in the dtype of the table, which SGLang's server "
                "casts to that of the queries, even where they cancel",
                "sglang_rotary_half",
            )
            for how in ("sections", "interleaved", "interleaved, full blocks", "ernie")
        ),
    )
)  # fmt: skip
