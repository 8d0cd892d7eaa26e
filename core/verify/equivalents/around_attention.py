"""Equivalent mutants of what stands around attention: heads, merging, weights and so on."""

from __future__ import annotations

from twofold.core.verify.equivalents.attention import VISITED_IN_VAIN, early, last, start
from twofold.core.verify.equivalents.entry import Equivalent, of
from twofold.core.verify.equivalents.reasons import BOTH_FLOAT32, STORE_CASTS, UNSTORED

_MERGE = of(
    "kernels/merge_attention.py",
    {
        "all weights are 0 there": (
            (
                "sum_weights",
                "return top, total, 1.0 / tl.where(total == 0.0, 1.0, total)",
                "1.0 → 1.001 (2)",
            ),
        ),
        UNSTORED: (
            (
                "load_lse",
                "tl.load(lses_at + tl.cast(s, tl.int64) * lses_part, mask=inside, "
                "other=-float('inf')): drop other",
            ),
            (
                "backward_kernel",
                "tl.load(dlse_ptr + at(dlse_strides, b, h, m), mask=inside, other=0.0): drop other",
            ),
        ),
        BOTH_FLOAT32: (
            ("weigh_part", "drop .to(tl.float32) of tl.load(outs_at*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(dout_at*"),
        ),
        STORE_CASTS: (
            ("forward_rows", "drop .to(out_ptr.dtype.element_ty) of out"),
            ("backward_kernel", "drop .to(douts_ptr.dtype.element_ty) of *"),
        ),
    },
) + of(
    "reference/merge_attention.py",
    {
        "in float32 and float64, in which its contract is asked, it has that dtype": (
            ("backward", "drop .astype(outs.dtype) of w[..., None] * dout"),
        ),
    },
)

_SEEN = "(start >= begin) & (start < end)"
_WEIGHTS = of(
    "kernels/attention_weights.py",
    {
        VISITED_IN_VAIN: (
            *last("weights_kernel", "BLOCK_M", "end_row"),
            *start("weights_kernel"),
            *last("received_kernel", "BLOCK_N", "seq.present"),
            ("weights_kernel", "start < end → start <= end"),
            ("weights_kernel", f"{_SEEN} → (start >= begin) | (start < end)"),
            ("weights_kernel", f"{_SEEN} → start >= begin"),
            ("weights_kernel", f"{_SEEN} → start < end"),
            ("weights_kernel", "visited & (here < after) → *"),
            ("weights_kernel", "here < after → here <= after"),
            ("received_kernel", "x.k_starts is not None → x.k_starts is None"),
            ("received_kernel", "first >= seq.N → first > seq.N"),
        ),
        "what padding keys would sum up is not stored": (
            ("received_kernel", "first < seq.present → first <= seq.present"),
            (
                "received_kernel",
                "length = tl.where(first < seq.present, tl.cdiv(seq.M, BLOCK_M) * BLOCK_M, 0)",
                "0 → 1",
            ),
        ),
        "without a band there is no tile at its edge": (
            ("received_kernel", "for EDGE in tl.static_range(*", "1 → 2"),
        ),
    },
) + of(
    "reference/attention_weights.py",
    {"of four axes": (("received", "-2 → 2"),)},
)

_DECODE = (
    of(
        "kernels/attention_decode.py",
        {
            VISITED_IN_VAIN: (
                *last("split_kernel", "BLOCK_R", "rows_in_all"),
                ("split_kernel", "shift + first // x.G → shift"),
                ("split_kernel", "shift + first // x.G → shift - first // x.G"),
                ("split_kernel", "if (begin >= present) & (part > 0):*", "0 → 1"),
                (
                    "split_kernel",
                    "if (begin >= present) & (part > 0):*",
                    "begin >= present → begin > present",
                ),
                ("split_kernel", "first >= rows_in_all → first > rows_in_all"),
                ("split_kernel", "x.q_starts is not None → x.q_starts is None"),
            ),
            "it is broadcast all the same": (
                ("has_live_block", "s = tl.zeros(*", "0 → 1"),
                ("has_live_block", "s = tl.zeros(*", "1 → 0"),
            ),
            "`attend` loads queries that it is not handed": (
                ("split_kernel", "CHUNK_D == BLOCK_D → CHUNK_D != BLOCK_D"),
            ),
            "a part that attended nothing is left out, whatever is stored": (
                ("split_kernel", "lse > -float('inf') → lse >= -float('inf')"),
                ("split_kernel", "(m < M) & (lse > -float('inf')) → m < M"),
            ),
            "scores are made of numbers of queries and keys, wherever these are in memory": (
                ("split_kernel", "keys = Sequence(b, q_first, 0, M, x.N, end, shift)", "0 → 1"),
            ),
            "what is outside is masked": (
                ("find", "tl.load(pages.table + page_at, mask=key < end, other=0): drop other"),
            ),
        },
    )
    + of(
        "kernels/attention_decode_tiles.py",
        {
            "parts or none: within the bound of either": (
                ("choose_split", "rows <= MOST_SPLIT → rows < MOST_SPLIT"),
            ),
            "another tile of the table: it computes the same, at another cost": (
                ("choose_tile", "rows <= most_rows → rows < most_rows"),
                ("choose_tile", "bytes_ == size → bytes_ != size"),
                (
                    "choose_tile",
                    "rows <= most_rows and bytes_ == size and (head_dim <= largest) → *",
                ),
            ),
            "the kernels take no float64": (("choose_tile", "4 → 5"),),
        },
    )
    + of(
        "reference/attention_decode.py",
        {
            "an integer broadcasts as an array does": (("placed", "one + b → b"),),
            "nothing is dropped": (("forward", "dropout_p > 0.0 → dropout_p >= 0.0"),),
        },
    )
)

_FP8 = (
    of(
        "kernels/attention_fp8.py",
        {
            "only features below 2F, at most D, are turned": (
                ("read", "d < D → d <= D"),
                ("read", "(start + rows < length) & (d < D) → start + rows < length"),
            ),
            VISITED_IN_VAIN: (
                *last("forward_kernel", "BLOCK_M", "seq.M"),
                *early("forward_kernel", "q", "M"),
                *start("forward_kernel"),
            ),
            "it was 0 so far": (("forward_kernel", "total += 1.0 → total = 1.0"),),
            "it is broadcast all the same": (
                (
                    "forward_kernel",
                    "tl.zeros([BLOCK_M], tl.float32) + tl.load(x.sinks + h).to(tl.float32) * LOG2_E"
                    " → tl.load(x.sinks + h).to(tl.float32) * LOG2_E",
                ),
            ),
            STORE_CASTS: (("forward_kernel", "drop .to(out_ptr.dtype.element_ty) of out"),),
        },
    )
    + of(
        "kernels/attention_fp8_quantize.py",
        {
            STORE_CASTS: (("cast_kernel", "drop .to(out_ptr.dtype.element_ty) of *"),),
            "divided by a float32 it becomes one": (("cast_kernel", "drop .to(tl.float32) of *"),),
        },
    )
    + of(
        "kernels/attention_fp8_tiles.py",
        {
            "it computes the same, at another cost": (
                ("copied", "*"),
                ("choose_tile", "masked → not masked"),
                ("choose_tile", "rotary → not rotary"),
                ("choose_tile", "amd and key in AMD → amd or key in AMD"),
            ),
            "they are a power of two": (("choose_tile", "256 → 257"),),
        },
    )
    + of(
        "reference/attention_fp8.py",
        {
            "the numbers are the same in another dtype": (
                ("forward", "out_dtype is None → out_dtype is not None"),
            ),
        },
    )
)

_LAST_KEY = "last = tl.minimum(start + BLOCK_N, seq.present) - 1"
_LENGTH = "length = tl.where(start < seq.present, seq.M, 0)"
_DOUBLE = (
    of(
        "kernels/attention_double_backward.py",
        {
            VISITED_IN_VAIN: (
                *last("rows_kernel", "BLOCK_M", "seq.M"),
                *start("rows_kernel"),
                *early("rows_kernel", "q", "M"),
                *last("queries_kernel", "BLOCK_M", "seq.M"),
                *start("queries_kernel"),
                *early("queries_kernel", "q", "M"),
                ("keys_kernel", "x.k_starts is not None → x.k_starts is None"),
                ("keys_kernel", "start >= seq.N → start > seq.N"),
                *(
                    (row[0], _LAST_KEY, row[-1])
                    for row in last("keys_kernel", "BLOCK_N", "seq.present")
                    if "first" not in row[-1]
                ),
                ("keys_kernel", _LAST_KEY, "tl.minimum(start + BLOCK_N, seq.present) - 1 → *"),
                ("keys_kernel", _LENGTH, "start < seq.present → start <= seq.present"),
                ("keys_kernel", _LENGTH, "0 → 1"),
            ),
            UNSTORED: (
                ("rows_kernel", "tl.load(y.lse + row_at, mask=inside, other=0.0): drop other"),
                ("rows_kernel", "tl.load(dlse_ptr + row_at, mask=inside, other=0.0): drop other"),
            ),
            STORE_CASTS: (
                ("queries_kernel", "drop .to(dq_ptr.dtype.element_ty) of *"),
                ("queries_kernel", "drop .to(ddout_ptr.dtype.element_ty) of ddout"),
                ("keys_kernel", "drop .to(dk_ptr.dtype.element_ty) of *"),
                ("keys_kernel", "drop .to(dv_ptr.dtype.element_ty) of dv"),
            ),
        },
    )
    + of(
        "kernels/attention_double_backward_parts.py",
        {
            "where the weight is 0 that is multiplied by 0": (
                (
                    "curvature_terms",
                    "slope = tl.where(p == 0.0, 0.0, change * slope)",
                    "0.0 → 1.0 (2)",
                ),
                (
                    "curvature_terms",
                    "curvature = tl.where(p == 0.0, 0.0, curvature)",
                    "0.0 → 1.0 (2)",
                ),
            ),
        },
    )
    + of(
        "kernels/attention_double_backward_tiles.py",
        {"the kernels take no float64": (("choose_tile", "4 → 5"),)},
    )
    + of(
        "reference/attention_double_backward.py",
        {
            "NumPy's functions, of which the contract's are made, keep float32 and float64": (
                ("second_derivative", "drop .astype(dtype) of np.asarray(curvature)"),
            ),
            "where the weight is 0 that is multiplied by 0": (
                (
                    "backward",
                    "slope = None if cache.slope is None else np.where(p == 0, 0, cache.slope)",
                    "0 → 1 (2)",
                ),
                (
                    "backward",
                    "u, dz = slope * t + np.where(p == 0, 0, curvature) * ds * a, slope * ds",
                    "0 → 1 (2)",
                ),
            ),
        },
    )
)

EQUIVALENT: tuple[Equivalent, ...] = (
    *_MERGE, *_WEIGHTS, *_DECODE, *_FP8, *_DOUBLE,
)  # fmt: skip
