"""Write the tables in reference/README.md: attention's features.

python benchmarks/features_page.py            rewrites what is between the page's markers
python benchmarks/features_page.py --check    exits with status 1 if that would change anything
"""

from __future__ import annotations

import re
from pathlib import Path

import pages

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "reference" / "README.md"
# Attention's features on both sides, how to call them, and the tests that show them.
FEATURES = (
    ("grouped-query and multi-query attention (GQA, MQA)", "k, v with K heads, K a divisor of H",
     "test_grouped_heads_are_repeated_keys"),
    ("the same with input and output projections, keys not repeated",
     "multi_head_attention.forward(…, num_heads=H, num_kv_heads=K)", "test_heads_are_views"),
    ("causal, bottom-right or top-left", "causal=True, \"top-left\"",
     "test_each_feature_goes_with_each_other"),
    ("sliding window", "window_size=(left, right)", "test_tiles_that_nobody_sees_are_not_visited"),
    ("softcap", "softcap", "test_each_feature_goes_with_each_other"),
    ("ALiBi", "alibi_slopes", "test_each_feature_goes_with_each_other"),
    ("additive bias, any broadcasting, with its gradient", "bias",
     "test_each_feature_goes_with_each_other"),
    ("attention sinks, with their gradient", "sinks", "test_a_sink_is_a_key_without_a_value"),
    ("custom functions of the scores, with a contract", "score_mod=ScoreMod(f, derivative, args)",
     "test_a_users_function_of_the_scores_has_a_contract"),
    ("boolean mask, key lengths, dropout", "mask, key_lengths, dropout_p, seed",
     "test_each_feature_goes_with_each_other"),
    ("block-sparse mask, any block size", "block_mask, block_size",
     "test_each_feature_goes_with_each_other"),
    ("packed sequences (varlen), any lengths",
     "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
     "test_each_feature_goes_with_each_other"),
    ("lse, and its gradient", "cache.lse, backward(dout, cache, dlse)",
     "test_each_feature_goes_with_each_other"),
    ("partial results merged by their lse", "merge_attention.forward(outs, lses)",
     "test_attention_over_halves_of_the_keys_merged_is_attention_over_all"),
    ("attention weights, of some queries or all", "attention_weights.weights(q, k, lse, rows)",
     "test_each_query_by_itself_is_seen_as_among_all"),
    ("attention received by each key", "attention_weights.received(q, k, lse)",
     "test_what_attention_saves_is_what_it_takes"),
    ("both for packed sequences", "cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k",
     "test_weights_of_packed_sequences_are_those_of_padded_batches"),
    ("decoding: one or a few queries over a KV cache, paged or not",
     "attention_decode.forward(q, k_cache, v_cache, key_lengths=, block_table=)",
     "test_the_kernel_is_that_of_attention_on_each_sequence"),
    ("decoding with a bias, masks, block masks, and rotary queries",
     "bias, mask, block_mask, block_size, rotary",
     "test_the_last_queries_of_a_causal_call_are_a_decoding"),
    ("decoding packed sequences, any number of new queries each, with dropout",
     "cu_seqlens_q, max_seqlen_q, dropout_p, seed",
     "test_packed_queries_are_those_of_packed_attention"),
    ("FP8 (e4m3) with a scale per head, forward",
     "attention_fp8.forward(q, k, v, q_scale=, k_scale=, v_scale=), attention_fp8.quantize(x)",
     "test_each_feature_goes_with_8_bits"),
    ("gradients of gradients (double backward); a custom function needs its second derivative",
     "attention_double_backward.backward(ddq, ddk, ddv, dout, cache, dlse)",
     "test_the_reference_passes_gradgradcheck"),
    ("rotary position embedding (RoPE)", "rotary=Rotary(cos, sin, …)",
     "test_angles_of_each_row_of_a_batch_or_of_all"),
    ("all of these with projections", "multi_head_attention.forward(x, w_qkv, b_qkv, …)",
     "test_all_that_attention_takes_goes_between_projections"),
    ("head_dim up to 512", "", "test_heads_of_many_features"),
)  # fmt: skip
# What is true of the kernels alone, and the tests that show it.
KERNELS = (
    ("no M×N matrix in memory", "test_nothing_of_queries_times_keys_is_allocated"),
    ("nor for the weights of some queries, or what keys receive",
     "test_one_query_and_what_keys_receive_take_no_memory_for_all_weights"),
    ("masked tiles not visited", "test_tiles_that_nobody_sees_are_not_visited"),
    ("tiles without a live block not visited", "test_tiles_of_no_live_block_are_not_visited"),
    ("packed sequences not padded", "test_programs_of_packed_sequences_visit_their_own_tiles"),
    ("the keys of a cache split over programs and merged",
     "test_the_kernel_is_that_of_attention_on_each_sequence"),
    ("offsets past 2³¹", "test_offsets_pass_two_to_the_31"),
)  # fmt: skip


def places() -> dict[str, Path]:
    """Return each test's file; of several, `test_attention_features` takes precedence."""
    paths = sorted((ROOT / "tests").glob("test_*attention*.py"))
    paths.sort(key=lambda path: path.stem == "test_attention_features")
    return {
        name: path.relative_to(ROOT)
        for path in paths
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def features() -> str:
    """Return attention's features, each with the test that shows it."""
    tests = places()
    rows = (
        f"| {feature} | {f'`{how}`' if how else ''} | [{test}](../{tests[test]}) |"
        for feature, how, test in FEATURES
    )
    return "\n".join(("| attention | argument or call | test |", "|---|---|---|", *rows))


def kernels() -> str:
    """Return what is true of the kernels alone, each with the test that shows it."""
    tests = places()
    rows = (f"| {what} | [{test}](../{tests[test]}) |" for what, test in KERNELS)
    return "\n".join(("| kernels | test |", "|---|---|", *rows))


def main() -> None:
    """Write the page, or check it."""
    filled = pages.filled(PAGE, {"features": features, "kernels": kernels})
    pages.put(PAGE, filled, __file__)


if __name__ == "__main__":
    main()
