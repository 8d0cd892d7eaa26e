"""Faults of attention and multi-head attention."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

FORWARD, BACKWARD = "kernels/attention.py", "kernels/attention_backward.py"
PARTS, BIAS = "kernels/attention_parts.py", "kernels/attention_bias.py"
REFERENCE, HEADS = "reference/attention.py", "kernels/multi_head_attention.py"
MERGE, MERGE_REFERENCE = "kernels/merge_attention.py", "reference/merge_attention.py"
DECODE, DECODE_REFERENCE = "kernels/attention_decode.py", "reference/attention_decode.py"

_ATTENTION: tuple[Row, ...] = (
    (
        PARTS, "a fully masked row gives NaN", "cubecl#1070",
        ('safe = tl.where(new_top == -float("inf"), 0.0, new_top)', "safe = new_top"),
    ),
    (
        PARTS, "a fully masked row has a finite lse", "onnxruntime#28904",
        ('tl.where(empty, -float("inf"), (top', "tl.where(empty, 0.0, (top"),
    ),
    (
        PARTS, "a masked score is −10⁹, so that a fully masked row is the mean of V",
        "onnxruntime#28904",
        ('inside, other=0) != 0, s, -float("inf"))', "inside, other=0) != 0, s, -1.0e9)"),
    ),
    (
        PARTS, "lse is +∞ where nothing is attended", "flash-attention#978",
        ('tl.where(empty, -float("inf"), (top', 'tl.where(empty, float("inf"), (top'),
    ),
    (
        PARTS, "lse is in base 2", "vllm#28840",
        ("(top + tl.log2(divisor)) * LN_2", "(top + tl.log2(divisor))"),
    ),
    (
        BACKWARD, "backward's diagonal is not forward's", "ffpa-attn#300",
        (
            "seen(first, last, x.ahead, x.behind, length, BLOCK_M)",
            "seen(first, last, 0 if x.ahead is not None else None, x.behind, length, BLOCK_M)",
        ),
    ),
    (
        FORWARD, "causal is aligned top left", "onnxruntime#28958",
        ("shift, left, right = band(options, M, N)", "shift, left, right = band(options, M, M)"),
    ),
    (
        PARTS, "the bound of a loop is not clamped to the keys", "FlagAttention#8",
        (
            "stop = tl.minimum(length, tl.maximum(first + 1 + ahead, 0))",
            "stop = tl.maximum(first + 1 + ahead, 0)",
        ),
    ),
    (
        PARTS, "the remainder block is left out", "sycl-tla#489",
        (
            "count = tl.cdiv(tl.maximum(end - stop, 0), BLOCK)",
            "count = tl.maximum(end - stop, 0) // BLOCK",
        ),
    ),
    (
        PARTS, "a window is one key too wide", "",
        ("columns >= rows - x.behind", "columns >= rows - x.behind - 1"),
    ),
    (
        PARTS, "tiles before the window's first full one are left out", "",
        ("count += tl.maximum(full - begin, 0) // BLOCK", "count += 0"),
    ),
    (
        FORWARD, "heads share keys with those that are far from them", "",
        ("shared = h // x.G", "shared = h % (x.H // x.G)"),
    ),
    (
        BACKWARD, "of the heads that share keys only the first has gradients", "",
        ("for g in range(x.G):",
         "for g in range(1):"),
    ),
    (
        PARTS, "ALiBi's distance is of the rows' numbers", "",
        ("tl.abs(rows + x.shift - columns)", "tl.abs(rows - columns)"),
    ),
    (
        PARTS, "ALiBi's slopes are those of the first batch", "",
        ("x.slopes + b * x.slopes_strides[0] + h", "x.slopes + h"),
    ),
    (
        PARTS, "backward does not know of softcap", "",
        ("ds = ds * (1.0 - ratio * ratio)", "ds = ds"),
    ),
    (
        PARTS, "softcap comes before the scale", "",
        ("None:\n        s = x.softcap * tanh(s / x.softcap)\n    if SCORE",
         "None:\n        s = x.softcap * tanh(product / x.softcap) * x.scale\n    if SCORE"),
    ),
    (
        PARTS, "a bias is not in base 2", "",
        ("s = tl.where(rows < x.M, s * LOG2_E,", "s = tl.where(rows < x.M, s,"),
    ),
    (
        FORWARD, "sinks are in base e", "",
        ("tl.load(x.sinks + h).to(tl.float32) * LOG2_E", "tl.load(x.sinks + h).to(tl.float32)"),
    ),
    (
        FORWARD, "a sink's gradient has the wrong sign", "",
        ("dsinks=-shares.sum((0, 2))", "dsinks=shares.sum((0, 2))"),
    ),
    (
        BIAS, "the gradient of a bias is that of the first batch", "",
        ("b_first, b_end, h_first, h_end = 0, B,", "b_first, b_end, h_first, h_end = 0, 1,"),
    ),
    (
        BIAS, "the gradient of a bias is scaled", "",
        ("dbias += p * (dp - delta)", "dbias += p * (dp - delta) * x.softmax_scale"),
    ),
    (
        BACKWARD, "dk has lost its scale", "flash-attention#2651",
        ("dk * x.softmax_scale, 0.0)", "dk, 0.0)"),
    ),
    (
        BACKWARD, "backward scales K in its own dtype", "FastVideo#1730",
        (
            "product = tl.dot(k, tl.trans(q), input_precision=PRECISION)",
            "product = tl.dot((k * x.scale).to(k.dtype), tl.trans(q), input_precision=PRECISION)",
        ),
        ("s = scores(product, x, b, h, rows, columns, present, EDGE, SCORE)\n                p = w",
         "s = scores(product / x.scale, x, b, h, rows, columns, present, EDGE, SCORE)\n"
         "                p = w"),
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
        PARTS, "the running sum is not rescaled when the maximum rises", "",
        ("total * rescale + tl.sum(p, axis=1)", "total + tl.sum(p, axis=1)"),
    ),
    (
        PARTS, "exp for exp2, of scores in base 2", "",
        ("p = tl.exp2(s - safe[:, None])", "p = tl.exp(s - safe[:, None])"),
        ("rescale = tl.exp2(top - safe)", "rescale = tl.exp(top - safe)"),
    ),
    (
        PARTS, "every head is head 0", "attorch#14",
        ("program % blocks, bh // H, bh % H", "program % blocks, bh // H, bh * 0"),
    ),
    (
        BACKWARD, "backward drops other weights than forward", "",
        ("seed, b, h, tl.trans(rows)", "seed, h, b, tl.trans(rows)"),
    ),
    (
        FORWARD, "dout is read as if it lay like out", "flash-attention#355",
        ("grads.dv, dout.stride(),", "grads.dv, cache.out.stride(),"),
    ),
    (
        FORWARD, "the gradient of lse is left out", "",
        ("None if dlse is None else dlse.float().contiguous()", "None"),
    ),
    (
        FORWARD, "heads after the first are wrong where a block is not full", "FlagGems#898",
        (
            "row_at = (b * x.H + h).to(tl.int64) * x.M + i",
            "row_at = (b * x.H + h).to(tl.int64) * (tl.cdiv(x.M, BLOCK_M) * BLOCK_M) + i",
        ),
    ),
    (
        FORWARD, "the grid is of another kernel's tile", "flash-attention#2337",
        ("dq_kernel[(blocks * B * H,)]", "dq_kernel[(triton.cdiv(M, over_keys.block_m) * B * H,)]"),
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
        ("cache.softmax_scale * folded, cache", "cache.softmax_scale * folded * 1.001, cache"),
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
        ("together(dropped, k).mT", "together(p, k).mT"),
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

_MERGE: tuple[Row, ...] = (
    (
        MERGE, "where all parts are −∞ the result is NaN", "flashinfer#4051",
        ('    top = tl.where(top == -float("inf"), 0.0, top)\n', ""),
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
        ("return tl.exp(lse - top), out", "return tl.exp2(lse - top), out"),
    ),
    (
        MERGE, "lse is +∞ where nothing is attended", "flash-attention#978",
        ('lse = tl.where(empty, -float("inf"),', 'lse = tl.where(empty, float("inf"),'),
    ),
    (
        MERGE, "the maximum is of the first parts alone", "",
        ("for start in range(0, S, BLOCK_S):", "for start in range(0, 1, BLOCK_S):"),
    ),
    (
        MERGE, "the maximum is not subtracted", "",
        ('top = tl.where(top == -float("inf"), 0.0, top)', "top = top * 0.0"),
    ),
    (
        MERGE, "the output is a sum of parts, not a mean", "",
        ("acc / tl.where(total == 0.0, 1.0, total)[:, None]", "acc"),
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
        ("dout, outs - out)", "dout, outs)"),
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

_DECODE: tuple[Row, ...] = (
    (
        DECODE, "the last tile of a part is read past its end", "",
        ("stop = tl.minimum(begin + split, present)", "stop = present"),
    ),
    (
        DECODE, "a sequence that ends within a part is not merged", "sycl-tla#489",
        ("tl.cdiv(keys_present(keys, b), split)", "keys_present(keys, b) // split"),
    ),
    (
        DECODE, "parts are merged that no program wrote", "triton#4075",
        (
            "parts = tl.maximum(tl.cdiv(keys_present(keys, b), split), 1)",
            "parts = tl.cdiv(keys.N, split)",
        ),
    ),
    (
        DECODE, "the number of parts depends on the batch", "flash-attention#2450",
        ("split = min(split, N)", "split = min(max(1, split // B), N)"),
    ),
    (
        DECODE, "the first page serves all keys of a tile", "",
        ("(key // pages.size).to(tl.int64)", "(start // pages.size)"),
    ),
    (
        DECODE, "the table is read after the last key", "",
        (
            "tl.load(pages.table + page_at, mask=key < end, other=0)",
            "tl.load(pages.table + page_at)",
        ),
    ),
    (
        DECODE, "causal is aligned to the capacity", "onnxruntime#28958",
        ("shift = present - M", "shift = x.N - M"),
    ),
    (
        DECODE, "a window is aligned to the part", "",
        ("seen(\n        shift + first // x.G, shift + last // x.G,",
         "seen(\n        stop - M + first // x.G, stop - M + last // x.G,"),
    ),
    (
        DECODE, "every part has the sink", "",
        ("top = tl.where(part == 0, sink, top)", "top = sink"),
        ("total = tl.where(part == 0, 1.0, total)", "total += 1.0"),
    ),
    (
        DECODE, "rows of a block are numbered head by head, and stored query by query", "",
        ("m, h = r // x.G, shared * x.G + r % x.G", "m, h = r % M, shared * x.G + r // M % x.G"),
    ),
    (
        DECODE, "the output of a part is not normalised", "",
        ("acc / divisor[:, None], mask=written", "acc, mask=written"),
    ),
    (
        DECODE, "values lie like keys", "",
        ("k_cache.stride(), v_cache.stride(),", "k_cache.stride(), k_cache.stride(),"),
    ),
    (
        DECODE_REFERENCE, "all sequences have the diagonal of the longest", "onnxruntime#28958",
        ("placed(score_mod, b, length - M)", "placed(score_mod, b, N - M)"),
    ),
)  # fmt: skip

FAULTS = (
    *of("attention", _ATTENTION),
    *of("merge_attention", _MERGE),
    *of("attention_decode", _DECODE),
    *of("multi_head_attention", _HEADS),
)
