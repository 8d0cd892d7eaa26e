"""Faults of attention and multi-head attention."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

FORWARD, BACKWARD = "kernels/attention.py", "kernels/attention_backward.py"
PARTS = "kernels/attention_parts.py"
REFERENCE, HEADS = "reference/attention.py", "kernels/multi_head_attention.py"

_ATTENTION: tuple[Row, ...] = (
    (
        FORWARD, "a fully masked row gives NaN", "cubecl#1070",
        ('safe = tl.where(new_top == -float("inf"), 0.0, new_top)', "safe = new_top"),
    ),
    (
        FORWARD, "a fully masked row has a finite lse", "onnxruntime#28904",
        ('tl.where(empty, -float("inf"), (top', "tl.where(empty, 0.0, (top"),
    ),
    (
        PARTS, "a masked score is −10⁹, so that a fully masked row is the mean of V",
        "onnxruntime#28904",
        ('inside, other=0) != 0, s, -float("inf"))', "inside, other=0) != 0, s, -1.0e9)"),
    ),
    (
        FORWARD, "lse is +∞ where nothing is attended", "flash-attention#978",
        ('tl.where(empty, -float("inf"), (top', 'tl.where(empty, float("inf"), (top'),
    ),
    (
        FORWARD, "lse is in base 2", "vllm#28840",
        ("(top + tl.log2(divisor)) * LN_2", "(top + tl.log2(divisor))"),
    ),
    (
        BACKWARD, "backward's diagonal is not forward's", "ffpa-attn#300",
        ("shift = N - M\n    begin = 0", "shift = 0\n    begin = 0"),
    ),
    (
        FORWARD, "causal is aligned top left", "onnxruntime#28958",
        ("shift = N - M", "shift = 0"),
    ),
    (
        REFERENCE, "causal is aligned top left", "onnxruntime#28958",
        ("np.arange(M)[:, None] + N - M", "np.arange(M)[:, None]"),
    ),
    (
        PARTS, "the bound of a loop is not clamped to the keys", "FlagAttention#8",
        (
            "full = tl.minimum(present, tl.maximum(first + 1 + shift, 0))",
            "full = tl.maximum(first + 1 + shift, 0)",
        ),
    ),
    (
        PARTS, "the remainder block is left out", "sycl-tla#489",
        (
            "return full // BLOCK_N * BLOCK_N, end",
            "return full // BLOCK_N * BLOCK_N, end // BLOCK_N * BLOCK_N",
        ),
    ),
    (
        BACKWARD, "dk has lost its scale", "flash-attention#2651",
        ("dk * softmax_scale, 0.0)", "dk, 0.0)"),
    ),
    (
        BACKWARD, "backward scales K in its own dtype", "FastVideo#1730",
        (
            "product = tl.dot(k, tl.trans(q), input_precision=PRECISION)",
            "product = tl.dot((k * scale).to(k.dtype), tl.trans(q), input_precision=PRECISION)",
        ),
        ("present, shift, M, scale,\n                not FULL", "present, shift, M, 1.0, not FULL"),
    ),
    (
        FORWARD, "tf32 though nobody allowed it", "",
        ("float32_products(cache.allow_tf32)", "float32_products(True)"),
    ),
    (
        FORWARD, "the accumulator is not rescaled when the maximum rises", "",
        ("acc = acc * rescale[:, None]", "acc = acc"),
    ),
    (
        FORWARD, "the running sum is not rescaled when the maximum rises", "",
        ("total = total * rescale + tl.sum(p, axis=1)", "total = total + tl.sum(p, axis=1)"),
    ),
    (
        FORWARD, "exp for exp2, of scores in base 2", "",
        ("p = tl.exp2(s - safe[:, None])", "p = tl.exp(s - safe[:, None])"),
        ("rescale = tl.exp2(top - safe)", "rescale = tl.exp(top - safe)"),
    ),
    (
        PARTS, "every head is head 0", "attorch#14",
        ("program % blocks, bh // H, bh % H", "program % blocks, bh // H, bh * 0"),
    ),
    (
        BACKWARD, "backward drops other weights than forward", "",
        (
            "dropout.attention_keep(seed, b, h, tl.trans(rows), first, threshold",
            "dropout.attention_keep(seed, h, b, tl.trans(rows), first, threshold",
        ),
    ),
    (
        FORWARD, "dout is read as if it lay like out", "flash-attention#355",
        ("_strides(cache.mask), dout.stride())", "_strides(cache.mask), cache.out.stride())"),
    ),
    (
        FORWARD, "the gradient of lse is left out", "",
        ("HAS_DLSE=dlse is not None", "HAS_DLSE=False"),
    ),
    (
        FORWARD, "heads after the first are wrong where a block is not full", "FlagGems#898",
        (
            "row_at = (b * H + h).to(tl.int64) * M + i",
            "row_at = (b * H + h).to(tl.int64) * (tl.cdiv(M, BLOCK_M) * BLOCK_M) + i",
        ),
    ),
    (
        FORWARD, "the grid is of another kernel's tile", "flash-attention#2337",
        ("triton.cdiv(M, over_queries.block_m) * B", "triton.cdiv(M, over_keys.block_m) * B"),
    ),
    (
        FORWARD, "the scale is of the padded head_dim", "triton#621",
        ("1 / math.sqrt(D) if", "1 / math.sqrt(padded(D)) if"),
    ),
    (
        FORWARD, "the last rows are not written", "flash-linear-attention#892",
        ("[(triton.cdiv(M, tile.block_m) * B * H,)]", "[(max(1, M // tile.block_m) * B * H,)]"),
    ),
    (
        FORWARD, "the accumulator is in the storage dtype", "",
        (
            "acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)",
            "acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)"
            ".to(v.dtype).to(tl.float32)",
        ),
    ),
    (
        FORWARD, "the scale is 0.1 % too large", "",
        ("scale * math.log2(math.e),\n        **",
         "scale * math.log2(math.e) * 1.001,\n        **"),
    ),
    (
        BACKWARD, "delta is of the rounded products", "",
        ("delta = tl.sum(out * dout, axis=1)",
         "delta = tl.sum((out * dout).to(out_ptr.dtype.element_ty).to(tl.float32), axis=1)"),
    ),
    (
        REFERENCE, "the gradient of the weights is not dropped out", "",
        ("dp *= keep", "pass"),
    ),
    (
        REFERENCE, "dv is of the weights before dropout", "",
        ("dropped.mT @ dout", "p.mT @ dout"),
    ),
)  # fmt: skip

_HEADS: tuple[Row, ...] = (
    (
        HEADS, "the gradients are not turned back", "",
        ("positions.backward(dq, dk, cache.rotary, into=(dq, dk))",
         "positions.backward(dq, dk, cache.rotary)"),
    ),
    (
        HEADS, "q, k and v lie side by side in every head", "",
        (
            "packed.view(B, L, parts, num_heads, -1).permute(2, 0, 3, 1, 4)",
            "packed.view(B, L, num_heads, parts, -1).permute(3, 0, 2, 1, 4)",
        ),
    ),
    (
        HEADS, "the context's keys have the queries' bias", "",
        ("(b_qkv[:E], b_qkv[E:])", "(b_qkv[:E], b_qkv[: 2 * E])"),
    ),
    (
        HEADS, "only queries are turned", "",
        ("(q, k), rotary_cache = positions", "(q, _), rotary_cache = positions"),
    ),
    (
        HEADS, "attention has tf32 though nobody allowed it", "",
        ("seed=seed,\n        allow_tf32=allow_tf32", "seed=seed,\n        allow_tf32=True"),
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
        ("dq, dk = rotary_backward(dq, dk, cache.rotary)", "pass"),
    ),
)  # fmt: skip

FAULTS = (
    *of("attention", _ATTENTION),
    *of("multi_head_attention", _HEADS),
)
