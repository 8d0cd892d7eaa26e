"""Faults of attention, as they have shipped."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

FORWARD, BACKWARD = "kernels/attention.py", "kernels/attention_backward.py"
FEATURES = "kernels/attention_features.py"
PARTS, BIAS = "kernels/attention_parts.py", "kernels/attention_bias.py"
ROTARY = "kernels/rotary.py"
REFERENCE, BLOCKS = "reference/attention.py", "kernels/attention_blocks.py"

_ATTENTION: tuple[Row, ...] = (
    (
        PARTS, "a fully masked row gives NaN", "cubecl#1070",
        ('safe = tl.where(new_top == -float("inf"), 0.0, new_top)', "safe = new_top"),
    ),
    (
        PARTS, "a score that is NaN counts as masked", "",
        (
            "p = tl.exp2(s - safe[:, None])",
            'p = tl.where(s > -float("inf"), tl.exp2(s - safe[:, None]), 0.0)',
        ),
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
            "first - seq.shift, last - seq.shift, x.ahead, x.behind, length, BLOCK_M",
            "first, last, x.ahead, x.behind, length, BLOCK_M",
        ),
    ),
    (
        PARTS, "causal is aligned top left", "onnxruntime#28958",
        ("ahead = band(options, M, N)", "ahead = band(options, M, M)"),
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
        ("rows + (seq.shift - x.behind)", "rows + (seq.shift - x.behind - 1)"),
    ),
    (
        PARTS, "tiles before the window's first full one are left out", "",
        ("count += tl.maximum(full - begin, 0) // BLOCK", "count += 0"),
    ),
    (
        FORWARD, "heads share keys with those that are far from them", "",
        ("kv_head = h // x.G", "kv_head = h % (x.H // x.G)"),
    ),
    (
        BACKWARD, "of the heads that share keys only the first has gradients", "",
        ("for g in range(x.G):",
         "for g in range(1):"),
    ),
    (
        PARTS, "ALiBi's distance is of the rows' numbers", "",
        ("tl.abs(rows + seq.shift - columns)", "tl.abs(rows - columns)"),
    ),
    (
        PARTS, "ALiBi's slopes are those of the first batch", "",
        ("x.alibi + b * x.alibi_strides[0] + h", "x.alibi + h"),
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
        ("s = tl.where(rows < seq.M, s * LOG2_E,", "s = tl.where(rows < seq.M, s,"),
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
        ("dk = scaled(dk, x.softmax_scale)", "dk = scaled(dk, 1.0)"),
    ),
    (
        BACKWARD, "backward scales K in its own dtype", "FastVideo#1730",
        (
            "product = dot_rows(k, q, PRECISION)",
            "product = dot_rows(((k[0] * x.scale).to(k[0].dtype),), q, PRECISION)",
        ),
        ("s = scores(product, x, b, seq, h, rows, columns, EDGE, SCORE)\n                p = w",
         "s = scores(product / x.scale, x, b, seq, h, rows, columns, EDGE, SCORE)\n"
         "                p = w"),
    ),
    (
        FORWARD, "tf32 though nobody allowed it", "",
        ("float32_products(allow_tf32)", "float32_products(True)"),
    ),
    (
        FORWARD, "the accumulator is not rescaled when the maximum rises", "",
        ("acc = scaled(acc, rescale[:, None])", "acc = acc"),
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
        PARTS, "heads after the first are wrong where a block is not full", "FlagGems#898",
        (
            "return tl.cast(seq.batch * x.H + h, tl.int64) * x.M",
            "return tl.cast(seq.batch * x.H + h, tl.int64) * (tl.cdiv(x.M, 16) * 16)",
        ),
    ),
    (
        FORWARD, "the grid is of another kernel's tile", "flash-attention#2337",
        ("dq_kernel[(triton.cdiv(longest_q, over_queries.block_m)",
         "dq_kernel[(triton.cdiv(longest_q, over_keys.block_m)"),
    ),
    (
        FORWARD, "the scale is of the padded head_dim", "triton#621",
        ("scale = options.scale(D)", "scale = options.scale(padded(D))"),
    ),
    (
        FORWARD, "the last rows are not written", "flash-linear-attention#892",
        ("[(triton.cdiv(longest_q, tile.block_m) *", "[(max(1, longest_q // tile.block_m) *"),
    ),
    (
        FEATURES, "the accumulator is in the storage dtype", "",
        (
            "total = tl.dot(weights, x[0], acc[0], input_precision=PRECISION)",
            "total = tl.dot(weights, x[0], acc[0], input_precision=PRECISION)"
            ".to(weights.dtype).to(tl.float32)",
        ),
    ),
    (
        FEATURES, "a second tile of features is left out of the scores", "",
        ("if len(x) == 2:\n        product =", "if len(x) == 3:\n        product ="),
    ),
    (
        FEATURES, "a second tile of features begins where the first does", "",
        ("first + BLOCK_D + tl", "first + tl"),
    ),
    (
        PARTS, "the scale is 0.1 % too large", "",
        ("softmax_scale * folded, softmax", "softmax_scale * folded * 1.001, softmax"),
    ),
    (
        BACKWARD, "delta is of the rounded products", "",
        ("delta = tl.sum(out * dout, axis=1)",
         "delta = tl.sum((out * dout).to(out_ptr.dtype.element_ty).to(tl.float32), axis=1)"),
    ),
    (
        PARTS, "packed keys begin where the queries do", "",
        ("tl.load(x.q_starts + b), tl.load(x.k_starts + b)",
         "tl.load(x.q_starts + b), tl.load(x.q_starts + b)"),
    ),
    (
        PARTS, "a packed sequence has the mask of the first", "",
        ("s, x.mask, x.mask_strides, b, h,", "s, x.mask, x.mask_strides, seq.batch, h,"),
    ),
    (
        PARTS, "a packed sequence has the blocks of the first", "",
        ("x.block_mask, x.block_strides, b,", "x.block_mask, x.block_strides, seq.batch,"),
    ),
    (
        PARTS, "blocks are as wide as they are high", "",
        ("columns // x.block_n", "columns // x.block_m"),
    ),
    (
        BLOCKS, "a tile is live if its first block is", "",
        ("for j in range(tl.cdiv(tile - 1, block) + 1):", "for j in range(1):"),
    ),
    (
        BLOCKS, "the first block of a tile does not count", "",
        ("for j in range(tl.cdiv", "for j in range(1, tl.cdiv"),
    ),
    (
        BACKWARD, "of heads that share keys all have the blocks of the first", "",
        ("places(x, b, h, block, begin, full, stop, end, BLOCK_M)",
         "places(x, b, kv_head * x.G, block, begin, full, stop, end, BLOCK_M)"),
    ),
    (
        FORWARD, "a packed sequence drops the weights that the first does", "",
        ("dropout.attention_keep(x, seed, b, h,",
         "dropout.attention_keep(x, seed, b if x.q_starts is None else b * 0, h,"),
    ),
    (
        PARTS, "the diagonal of packed sequences is that of the longest", "",
        ("shift=None if own_shift else shift",
         "shift=longest_k - longest_q if own_shift else shift"),
    ),
    (
        ROTARY, "keys are turned by the angles of queries", "",
        ("turn(k, *rotary.of_k), options", "turn(k, *rotary.of_q), options"),
    ),
    (
        ROTARY, "every batch is turned by the angles of the first", "",
        ("x.expand(B, L, F)", "x.reshape(-1, L, F)[:1].expand(B, L, F)"),
    ),
    (
        FORWARD, "backward attends to keys that are not turned", "",
        ("q, k, options = at_positions(cache.q, cache.k, cache.options)",
         "q, _, options = at_positions(cache.q, cache.k, cache.options); k = cache.k"),
    ),
    (
        FORWARD, "the gradient of turned keys is not turned back", "",
        ("turn_back_in_place(grads.dk, *rotary.of_k)", "pass"),
    ),
    (
        FORWARD, "lse of packed sequences lies as that of batches", "",
        ("rows_at(x, seq, h, i)", "rows_at(x, seq, h, i) - h * (x.M - x.longest_q)"),
    ),
    (
        BACKWARD, "keys of a packed sequence without queries have no gradient, not 0", "",
        ("if first >= seq.N:", "if (first >= seq.N) | (seq.M == 0):"),
    ),
    (
        PARTS, "a score of NaN is not attended to", "",
        ("    s = product * x.scale\n    if",
         "    s = product * x.scale\n    s = tl.where(s == s, s, -float('inf'))\n    if"),
    ),
    (
        PARTS, "a weight of NaN is 0", "",
        ("    p = tl.exp2(s - safe[:, None])\n",
         "    p = tl.exp2(s - safe[:, None])\n    p = tl.where(p == p, p, 0.0)\n"),
    ),
    (
        PARTS, "tanh of a large number is ∞/∞", "",
        ("return 1.0 - 2.0 / (1.0 + tl.exp2(a * (2.0 * LOG2_E)))",
         "return (tl.exp2(a * (2.0 * LOG2_E)) - 1.0) / (tl.exp2(a * (2.0 * LOG2_E)) + 1.0)"),
    ),
    (
        PARTS, "a bias of −∞ is −10⁹, so that a fully hidden row is the mean of V", "",
        ("s += tl.load(where, mask=inside, other=0.0).to(tl.float32)\n",
         "s += tl.maximum(tl.load(where, mask=inside, other=0.0).to(tl.float32), -1.0e9)\n"),
    ),
    (
        PARTS, "a length below 0 counts as its last 32 bits", "",
        ("tl.maximum(tl.load(lengths + b), 0)", "tl.load(lengths + b)"),
    ),
    (
        PARTS, "slopes are rounded as queries are", "",
        ("alibi_slope.to(tl.float32)", "alibi_slope.to(x.q.dtype.element_ty).to(tl.float32)"),
    ),
    (
        PARTS, "lengths are taken to be contiguous", "",
        ("lengths=_contiguous(options.key_lengths)", "lengths=options.key_lengths"),
    ),
    (
        FORWARD, "values of padding are multiplied by 0", "",
        ("v = load_features(x.v, x.v_strides, seq.batch, kv_head, key, tl.trans(n), d, k_end, D)",
         "v = load_features(x.v, x.v_strides, seq.batch, kv_head, key, tl.trans(n), d, "
         "seq.k_first + seq.N, D)"),
    ),
    (
        BACKWARD, "weights are cast before dS is made of them", "",
        ("through_scores(\n                    p * (",
         "through_scores(\n                    p.to(x.q.dtype.element_ty).to(tl.float32) * ("),
    ),
    (
        BACKWARD, "dS is scaled before its cast, and underflows", "",
        ("dk = add_weighted(dk, ds, q, PRECISION)",
         "dk = add_weighted(dk, ds * x.softmax_scale, q, PRECISION)"),
        ("dk = scaled(dk, x.softmax_scale)", "dk = scaled(dk, 1.0)"),
    ),
    (
        FORWARD, "a sink's gradient is summed in its dtype", "",
        ("-shares.sum((0, 2)).to(options.sinks.dtype)",
         "-shares.to(options.sinks.dtype).sum((0, 2))"),
    ),
    (
        FORWARD, "dv is written with dk's strides", "",
        ("grads.dk.stride(), grads.dv.stride(),", "grads.dk.stride(), grads.dk.stride(),"),
    ),
    (
        BIAS, "where a row of a bias serves all queries only two tiles of them are summed", "",
        ("tl.minimum(m_end, seq.M), BLOCK_M):",
         "tl.minimum(tl.minimum(m_end, m_first + 2 * BLOCK_M), seq.M), BLOCK_M):"),
    ),
    (
        REFERENCE, "the gradient of the weights is not dropped out", "",
        ("dp *= scaled_mask", "pass"),
    ),
    (
        REFERENCE, "dv is of the weights before dropout", "",
        ("fold_groups(dropped, k).mT", "fold_groups(p, k).mT"),
    ),
)  # fmt: skip

FAULTS = of("attention", _ATTENTION)
