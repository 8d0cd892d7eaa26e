"""Faults of what stands around attention: heads, merging, weights, 8 bits and so on."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

HEADS = "kernels/multi_head_attention.py"
WEIGHTS, WEIGHTS_REFERENCE = "kernels/attention_weights.py", "reference/attention_weights.py"
DOUBLE, DOUBLE_PARTS, DOUBLE_REFERENCE = (
    "kernels/attention_double_backward.py",
    "kernels/attention_double_backward_parts.py",
    "reference/attention_double_backward.py",
)
LAYOUT = "kernels/layout.py"
MERGE, MERGE_REFERENCE = "kernels/merge_attention.py", "reference/merge_attention.py"
PARTS = "kernels/attention_parts.py"  # of which FP8 alone turns keys as it reads them
FP8, FP8_REFERENCE = "kernels/attention_fp8.py", "reference/attention_fp8.py"
FP8_QUANTIZE = "kernels/attention_fp8_quantize.py"

_HEADS: tuple[Row, ...] = (
    (
        HEADS, "the gradients are not turned back", "",
        ("positions.backward(dq, dk, cache.rotary, into=(dq, dk))",
         "positions.backward(dq, dk, cache.rotary)"),
    ),
    (
        HEADS, "q, k and v lie side by side in every head", "",
        (
            "return torch.split(each, list(heads), dim=1)",
            "return tuple(each[:, i :: len(heads)] for i in range(len(heads)))",
        ),
    ),
    (
        HEADS, "the context's keys have the queries' bias", "",
        ("(b_qkv[:E], b_qkv[E:])", "(b_qkv[:E], b_qkv[: len(b_qkv) - E])"),
    ),
    (
        HEADS, "values are projected before keys", "",
        ("q, k, v = split(packed, num_heads, K, K)", "q, v, k = split(packed, num_heads, K, K)"),
    ),
    (
        HEADS, "only queries are turned", "",
        ("(q, k), rotary_cache = positions", "(q, _), rotary_cache = positions"),
    ),
    (
        HEADS, "attention has tf32 though nobody allowed it", "",
        ("block_size,\n        allow_tf32=allow_tf32", "block_size,\n        allow_tf32=True"),
    ),
    (
        HEADS, "a context is not padded by key_lengths", "",
        ("key_lengths=key_lengths,", "key_lengths=key_lengths if context is None else None,"),
    ),
    (
        "reference/multi_head_attention.py", "heads are joined without being moved inside", "",
        ("x.swapaxes(1, 2).reshape(B, L, H * D)", "x.reshape(B, L, H * D)"),
    ),
    (
        "reference/multi_head_attention.py", "the gradients are not turned back", "",
        ("dq, dk = positions.backward(dq, dk, cache.rotary)", "pass"),
    ),
)  # fmt: skip

_MERGE: tuple[Row, ...] = (
    (
        MERGE, "where all parts are −∞ the result is NaN", "flashinfer#4051",
        ("tl.maximum(top, LEAST)", "top"),
    ),
    (
        MERGE, "what a part that attended nothing holds is multiplied by 0", "vllm#39148",
        ('read = (lse > -float("inf"))[:, None] & columns', "read = inside[:, None] & columns"),
    ),
    (
        MERGE, "lse is in base 2", "vllm#28840",
        ("top + tl.log(", "top + tl.log2("),
    ),
    (
        MERGE, "lses are taken for base 2", "vllm#28840",
        ("return tl.exp(lse - top) *", "return tl.exp2(lse - top) *"),
        ("total += tl.exp(", "total += tl.exp2("),
    ),
    (
        MERGE, "lse is +∞ where nothing is attended", "flash-attention#978",
        ('total == 0.0, -float("inf"),', 'total == 0.0, float("inf"),'),
    ),
    (
        MERGE, "the maximum is of the first parts alone", "",
        ("for start in range(0, S, BLOCK_S):", "for start in range(0, 1, BLOCK_S):"),
    ),
    (
        MERGE, "the maximum is not subtracted", "",
        ("tl.maximum(top, LEAST)", "top * 0.0"),
    ),
    (
        MERGE, "the output is a sum of parts, not a mean", "",
        ("acc += w[:, None] * out", "acc += tl.where(w == 0.0, 0.0, 1.0)[:, None] * out"),
    ),
    (
        MERGE, "outputs are divided when they are summed up, which large ones do not outlive", "",
        ("acc += w[:, None] * out", "acc += (w / inverse)[:, None] * out"),
        ("return acc", "return acc * inverse[:, None]"),
    ),
    (
        MERGE, "outputs are summed in the storage dtype", "",
        (
            "acc += w[:, None] * out",
            "acc = (acc + w[:, None] * out).to(outs_at.dtype.element_ty).to(tl.float32)",
        ),
    ),
    (
        MERGE, "weights are cast before the product", "",
        (
            "acc += w[:, None] * out",
            "acc += w.to(outs_at.dtype.element_ty).to(tl.float32)[:, None] * out",
        ),
    ),
    (
        MERGE, "the gradient of lse is left out", "",
        ("HAS_DLSE=dlse is not None", "HAS_DLSE=False"),
    ),
    (
        MERGE, "the gradient of a log-sum-exp forgets the other parts", "",
        ("dout * (part - out)", "dout * part"),
    ),
    (
        MERGE, "the gradient of a log-sum-exp is of the output as it was stored", "",
        (
            "dout * (part - out)",
            "dout * (part - out.to(douts_ptr.dtype.element_ty).to(tl.float32))",
        ),
    ),
    (
        MERGE, "the gradient of lse goes to every part alike", "",
        ("mask=inside, other=0.0)\n    for s", "mask=inside, other=0.0) / S\n    for s"),
        ("            dlses += dlse\n        tl.store(dlses_ptr + row_at, w * dlses,",
         "            dlses += 0.0\n        dlses = w * dlses + (dlse if HAS_DLSE else 0.0)\n"
         "        tl.store(dlses_ptr + row_at, dlses,"),
    ),
    (
        MERGE, "dout is read as if it lay like out", "flash-attention#355",
        ("lses.stride()[1:], dout.stride(),", "lses.stride()[1:], cache.out.stride(),"),
    ),
    (
        MERGE, "parts are taken to be contiguous", "",
        ("outs.stride(0), lses.stride(0), outs.stride()[1:], lses.stride()[1:], out.stride(),",
         "B * H * M * D, B * H * M, outs.stride()[1:], lses.stride()[1:], out.stride(),"),
    ),
    (
        MERGE, "heads and queries change places", "",
        ("h.to(tl.int64) * strides[1] + m.to(tl.int64) * strides[2]",
         "m.to(tl.int64) * strides[1] + h.to(tl.int64) * strides[2]"),
    ),
    (
        MERGE_REFERENCE, "the gradient of a log-sum-exp forgets the other parts", "",
        ("widened(dout), outs - out)", "widened(dout), outs)"),
    ),
    (
        MERGE_REFERENCE, "the gradient of lse is not shared by weight", "",
        (
            "        dlses = dlses + dlse\n    return Gradients(douts, w * dlses)",
            "        dlses = dlses + dlse / np.where(w == 0, 1, w)\n"
            "    return Gradients(douts, w * dlses)",
        ),
    ),
)  # fmt: skip

_WEIGHTS: tuple[Row, ...] = (
    (
        WEIGHTS, "lse is taken for base 2", "vllm#28840",
        ('return tl.where(lse == -float("inf"), float("inf"), lse)',
         'return tl.where(lse == -float("inf"), float("inf"), lse * 0.6931472)'),
    ),
    (
        WEIGHTS, "queries beyond the last give their attention, too", "exllamav3#316",
        ('mask=rows < length, other=float("inf")', "mask=rows < length, other=0.0"),
    ),
    (
        WEIGHTS, "a query whose lse is −∞ weighs its keys", "",
        ('return tl.where(lse == -float("inf"), float("inf"), lse)', "return lse"),
    ),
    (
        WEIGHTS, "some queries have the numbers of the first", "ffpa-attn#300",
        ("scores(product, x, b, seq, h, rows, columns, True, SCORE)",
         "scores(product, x, b, seq, h, rows - first_row, columns, True, SCORE)"),
    ),
    (
        WEIGHTS, "some queries have the blocks of the first", "",
        ("over_keys(x, tile, some)", "over_keys(x, tile)"),
    ),
    (
        WEIGHTS, "what nobody sees is left as memory had it", "flash-linear-attention#892",
        ("    tl.store(p_at, p, mask=(rows < first_row",
         "    if start < end:\n        tl.store(p_at, p, mask=(rows < first_row"),
    ),
    (
        WEIGHTS, "packed sequences have the lse of the first", "",
        ("rows_at(x, seq, h, rows)", "rows_at(x, seq, h, rows) - seq.q_first"),
    ),
    (
        WEIGHTS, "all heads read the first head of keys", "attorch#14",
        ("kv_head = h // x.G", "kv_head = h // x.G * 0"),
    ),
    (
        WEIGHTS, "padding keys receive attention", "",
        ("total = tl.where(columns < seq.present, total, 0.0)", "pass"),
    ),
    (
        WEIGHTS, "lse is read as if it were contiguous", "flash-attention#355",
        ("lse.float().contiguous(), out,", "lse.float(), out,"),
    ),
    (
        WEIGHTS_REFERENCE, "a query without keys has weights that are no numbers", "cubecl#1070",
        ("np.where(lse == -np.inf, np.inf, lse)", "lse"),
    ),
    (
        WEIGHTS_REFERENCE, "some queries have the diagonal of the first", "ffpa-attn#300",
        ("attended(s.shape, options, some.start, M)", "attended(s.shape, options, 0, M)"),
    ),
)  # fmt: skip

_DOUBLE: tuple[Row, ...] = (
    (
        DOUBLE, "dq forgets that its gradient moves with q, too", "",
        ("dq = tl.dot(dz, ddk, dq, input_precision=PRECISION)", "dq = dq"),
    ),
    (
        DOUBLE_PARTS, "R is of the weights before dropout", "",
        ("r = dropped * away", "r = p * away"),
    ),
    (
        DOUBLE_PARTS, "E is of the weights before dropout", "",
        ("- c) + dropped * e", "- c) + p * e"),
    ),
    (
        DOUBLE, "the gradient of lse is left out of c", "",
        ("c - g * dlse, mask", "c, mask"),
    ),
    (
        DOUBLE, "the gradient of lse is left out of delta", "",
        ("    delta -= dlse\n", ""),
    ),
    (
        DOUBLE_PARTS, "what the normalisation takes away of G is left out", "",
        ("away = gs - g", "away = gs"),
    ),
    (
        DOUBLE_PARTS, "a softcap's slope is taken for a constant", "",
        ("u = slope * t + curvature * ds * a", "u = slope * t"),
    ),
    (
        DOUBLE_PARTS, "the gradient of dS stands where that of dZ should", "",
        ("u = slope * t + curvature * ds * a", "u = slope * t + curvature * ds * gs"),
    ),
    (
        DOUBLE_PARTS, "dropout is drawn by the rows of the packed batch", "",
        ("x, tl.load(x.seed), b, h, rows, start, threshold",
         "x, tl.load(x.seed), b, h, seq.q_first + rows, start, threshold"),
    ),
    (
        DOUBLE, "ddq and ddk are not turned to their positions", "",
        ("ddq, ddk = turn(ddq, *rotary.of_q), turn(ddk, *rotary.of_k)", "pass"),
    ),
    (
        DOUBLE, "dk is turned back by the angles of q", "",
        ("turn_back_in_place(dk, *rotary.of_k)", "turn_back_in_place(dk, *rotary.of_q)"),
    ),
    (
        DOUBLE, "the last tile of a packed sequence is written into the next", "",
        ("inside = (first + m < seq.M) & (d < D)", "inside = (query + m < x.M) & (d < D)"),
    ),
    (
        DOUBLE, "all parts of the features are the first", "",
        (
            "    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]\n    key, q_end",
            "    d = tl.arange(0, BLOCK_D)[None, :]\n    key, q_end",
        ),
    ),
    (
        DOUBLE, "of the heads that share keys only the first has gradients", "",
        ("for group in range(x.G):", "for group in range(1):"),
    ),
    (
        DOUBLE, "dk has lost its scale", "flash-attention#2651",
        ("tl.store(dk_at, (dk * x.softmax_scale)", "tl.store(dk_at, dk"),
    ),
    (
        LAYOUT, "ddk and ddv are read as if they lay like k", "flash-attention#355",
        (
            "if strides[-1] == 1 and aligned(*strides) and all(x.stride() == strides "
            "for x in arrays):",
            "if True:",
        ),
    ),
    (
        DOUBLE_REFERENCE, "the mean of W is not taken away", "",
        ("centred * away - c) + dropped", "centred * away) + dropped"),
    ),
    (
        DOUBLE_REFERENCE, "dk forgets that its gradient moves with k, too", "",
        ("(over_queries(u, q) + over_queries(dz, ddq))", "over_queries(u, q)"),
    ),
    (
        DOUBLE_REFERENCE, "a softcap's slope is taken for a constant", "",
        ("slope * t + np.where(p == 0, 0, curvature) * ds * a", "slope * t"),
    ),
)  # fmt: skip

_FP8: tuple[Row, ...] = (
    (
        FP8, "weights are cast as they are, and small ones underflow", "",
        ("(p * WEIGHTS).to(v.dtype)", "p.to(v.dtype)"),
        ("divisor * WEIGHTS", "divisor"),
    ),
    (
        FP8, "the largest weights pass 448", "",
        ("tl.constexpr(256.0)", "tl.constexpr(512.0)"),
    ),
    (
        FP8, "kept weights are scaled up before their cast, and the largest pass 448", "",
        ("(p * WEIGHTS).to(v.dtype)", "(p * (WEIGHTS * dropout_scale)).to(v.dtype)"),
        ("dropout_scale / (divisor", "1.0 / (divisor"),
    ),
    (
        FP8, "what is turned is rounded to 8 bits again", "",
        ("x.to(tl.float16), ptr", "x, ptr"),
    ),
    (
        PARTS, "keys are turned by the angles of queries", "",
        ("_turn(*turns.of_k)", "_turn(*turns.of_q)"),
    ),
    (
        PARTS, "every batch is turned by the angles of the first", "",
        ("row_at = tl.cast(b, tl.int64) * turn[2] +", "row_at = tl.cast(b, tl.int64) * 0 +"),
    ),
    (
        PARTS, "angles are taken to be contiguous", "",
        ("cos.contiguous(), sin.contiguous()", "cos, sin"),
    ),
    (
        FP8, "every chunk of features is the first", "",
        ("d = chunk + tl.arange(0, CHUNK_D)", "d = tl.arange(0, CHUNK_D)"),
    ),
    (
        FP8, "keys have the scale of the queries' head", "",
        (
            "load_scale(k_scale_ptr, k_scale_strides, b, kv_head)",
            "load_scale(k_scale_ptr, k_scale_strides, b, h)",
        ),
    ),
    (
        FP8, "values have the scale of keys", "",
        (
            "load_scale(v_scale_ptr, v_scale_strides, b, kv_head)",
            "load_scale(k_scale_ptr, k_scale_strides, b, kv_head)",
        ),
    ),
    (
        FP8, "every batch has the first one's scales", "",
        ("tl.load(ptr + b * strides[0] + h * strides[1])", "tl.load(ptr + h * strides[1])"),
    ),
    (
        FP8_QUANTIZE, "scales are of 240, the largest of another e4m3", "",
        ("largest.amax(-1) / LARGEST", "largest.amax(-1) / 240.0"),
    ),
    (
        FP8_QUANTIZE, "the largest of a head is that of its last rows", "",
        ("largest.amax(-1)", "largest[..., -1]"),
    ),
    (
        FP8_QUANTIZE, "a NaN is dropped by the maximum", "",
        ("tl.max(x.to(tl.int32, bitcast=True) & MAGNITUDE).to(tl.float32, bitcast=True)",
         "tl.max(tl.abs(x))"),
    ),
    (
        FP8_REFERENCE, "numbers below 2⁻⁶ are rounded as if they were no subnormals", "",
        ("LEAST_EXPONENT = -6", "LEAST_EXPONENT = -60"),
    ),
)  # fmt: skip

FAULTS = (
    *of("multi_head_attention", _HEADS),
    *of("merge_attention", _MERGE),
    *of("attention_weights", _WEIGHTS),
    *of("attention_double_backward", _DOUBLE),
    *of("attention_fp8", _FP8),
)
