"""Faults of decoding with a cache."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

DECODE, DECODE_REFERENCE = "kernels/attention_decode.py", "reference/attention_decode.py"

_DECODE: tuple[Row, ...] = (
    (
        DECODE, "the last tile of a part is read past its end", "",
        ("stop = tl.minimum(begin + split, present)", "stop = present"),
    ),
    (
        DECODE, "a sequence that ends within a part is not merged", "sycl-tla#489",
        ("tl.cdiv(keys_present(lengths_ptr, b, N), split)",
         "keys_present(lengths_ptr, b, N) // split"),
    ),
    (
        DECODE, "parts are merged that no program wrote", "triton#4075",
        (
            "parts = tl.maximum(tl.cdiv(keys_present(lengths_ptr, b, N), split), 1)",
            "parts = tl.cdiv(N, split)",
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
        ("m, h = r // x.G, kv_head * x.G + r % x.G", "m, h = r % M, kv_head * x.G + r // M % x.G"),
    ),
    (
        DECODE, "the output of a part is not normalised", "",
        ("(dropout_scale / divisor)[:, None]", "dropout_scale"),
    ),
    (
        DECODE, "values lie like keys", "",
        ("v = load(x.v, x.v_strides, page", "v = load(x.v, x.k_strides, page"),
    ),
    (
        DECODE, "positions begin at the new queries", "",
        ("positions = keys.shift + rows", "positions = rows"),
    ),
    (
        DECODE, "a bias and masks have rows of positions", "",
        ("keys, heads, rows, columns, True", "keys, heads, positions, columns, True"),
    ),
    (
        DECODE, "packed queries are aligned as those of the longest sequence", "",
        ("shift = present - M", "shift = present - x.longest_q"),
    ),
    (
        DECODE, "packed queries have the numbers that they have among all", "",
        ("s = scores(product, x, b, keys, heads, rows, columns",
         "s = scores(product, x, b, keys, heads, keys.q_first + rows, columns"),
    ),
    (
        DECODE, "the dropout mask begins anew in every part", "",
        ("rows, start, threshold, BLOCK_N)", "rows, start % 16, threshold, BLOCK_N)"),
    ),
    (
        DECODE, "lse is that of the weights that are kept", "",
        ("p, rescale, top, total = weigh(s, top, total)",
         "p, rescale, top, total = weigh(s if not DROPOUT else tl.where(dropout.attention_keep("
         "x, tl.load(x.seed), b, heads, rows, start, threshold, BLOCK_N), s, -float('inf')), "
         "top, total)"),
    ),
    (
        DECODE, "a tile whose first key alone is in a live block is passed over", "",
        ("i, j = rows // x.block_m, columns // x.block_n",
         "i, j = rows // x.block_m, (columns + 1) // x.block_n"),
    ),
    (
        DECODE, "a score of NaN is not attended to", "",
        ("    p, rescale, top, total = weigh(s, top, total)\n",
         "    s = tl.where((s == s) | (pages.table is not None), s, -float('inf'))\n"
         "    p, rescale, top, total = weigh(s, top, total)\n"),
    ),
    (
        DECODE_REFERENCE, "all sequences have the diagonal of the longest", "onnxruntime#28958",
        ("placed(score_mod, b, length - M)", "placed(score_mod, b, N - M)"),
    ),
)  # fmt: skip

FAULTS = of("attention_decode", _DECODE)
