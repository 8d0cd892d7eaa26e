"""Faults of what stands before attention: embedding, positions, dropout; and of pooling."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

KERNEL, REFERENCE = "kernels/{}.py", "reference/{}.py"

_ROTARY: tuple[Row, ...] = (
    (
        KERNEL, "backward pairs features as halves though forward interleaved them", "",
        ("cache, grads, True", "cache._replace(interleaved=False), grads, True"),
    ),
    (
        KERNEL, "positions are in bfloat16", "transformers#25681",
        ("positions[..., None].double()", "positions[..., None].to(torch.bfloat16).double()"),
    ),
    (
        KERNEL, "angles are in float32", "gpt-neox#1003",
        ("angle.cos().to(to), angle.sin().to(to)",
         "angle.float().cos().to(to), angle.float().sin().to(to)"),
    ),
    (
        KERNEL, "backward is not conjugated", "",
        ("cache, grads, True", "cache, grads, False"),
    ),
    (
        KERNEL, "a pair is half of head_dim apart, however many features turn", "",
        ("second = f + F", "second = f + D // 2"),
    ),
    (
        KERNEL, "every sequence has the positions of the first", "",
        ("cos_at = b * cos_strides[0] +", "cos_at = 0 * b +"),
        ("sin_at = b * sin_strides[0] +", "sin_at = 0 * b +"),
    ),
    (
        KERNEL, "features that do not turn are not copied", "",
        ("if D > 2 * F else 0", "if D < 2 * F else 0"),
    ),
    (
        KERNEL, "keys are turned as many as there are queries", "",
        ("elif h < H + K:", "elif h < 2 * H:"),
    ),
    (
        KERNEL, "a NaN counts as 0", "",
        ("        y1 = (x1 * cos - x2 * sin)",
         "        x1 = tl.where(x1 == x1, x1, 0.0)\n        y1 = (x1 * cos - x2 * sin)"),
    ),
    (
        REFERENCE, "positions are in float16", "transformers#25681",
        ("positions[..., None] / base", "positions[..., None].astype(np.float16) / base"),
    ),
    (
        REFERENCE, "backward is not conjugated", "",
        ("turn(x, cos, -sin, interleaved)", "turn(x, cos, sin, interleaved)"),
    ),
)  # fmt: skip

_POSITIONAL_ENCODING: tuple[Row, ...] = (
    (
        KERNEL, "an odd d_model has the wavelengths of the even one below", "",
        ("(2 * pair.double() / d_model)", "(2 * pair.double() / max(2, d_model // 2 * 2))"),
    ),
    (
        KERNEL, "sines in one half and cosines in the other", "",
        ("torch.where(columns % 2 == 0,", "torch.where(columns < (d_model + 1) // 2,"),
    ),
    (
        KERNEL, "angles are in float32", "gpt-neox#1003",
        ("positions[:, None].double() / divisor", "(positions[:, None] / divisor).float()"),
    ),
    (
        KERNEL, "positions are counted on from one sequence to the next", "",
        ("t = n % L", "t = n"),
    ),
    (
        KERNEL, "the scale multiplies the position, too", "",
        ("x = x.to(tl.float32) * scale\n", "x = x.to(tl.float32)\n"),
        ("    # (3) drop out\n    if DROPOUT", "    x = x * scale\n    if DROPOUT"),
    ),
    (
        KERNEL, "the table's gradient has lost its scale", "",
        ("dtable = sum_places(dout, places, scale,", "dtable = sum_places(dout, places, 1.0,"),
    ),
    (
        KERNEL, "the position table's gradient is dropped out otherwise", "",
        ("sum_places(dout, places, 1.0, *drawn", "sum_places(dout, places, 1.0, drawn[0], 0"),
    ),
    (
        KERNEL, "a position outside the table gives a number", "",
        ("known = known & placed", "pass"),
    ),
    (
        KERNEL, "the position table's gradient is that of the first sequence", "",
        ("clamp(max=L) * B", "clamp(max=L)"),
    ),
    (
        "kernels/embedding.py", "gradients of both tables end behind 1,024 columns", "",
        ("row_kernel[(V, triton.cdiv(D, own.block_d))]",
         "row_kernel[(V, 1 if tile is None else triton.cdiv(D, own.block_d))]"),
    ),
    (
        REFERENCE, "positions are counted from 1", "",
        ("positions = np.arange(ids.shape[1])",
         "positions = (np.arange(ids.shape[1]) + 1) % len(position_table)"),
    ),
)  # fmt: skip

_EMBEDDING: tuple[Row, ...] = (
    (
        KERNEL, "a NaN among the gradients counts as 0", "",
        ("        acc += x\n", "        acc += tl.where(x == x, x, 0.0)\n"),
    ),
    (
        KERNEL, "wide tables have gradients in their first 1,024 columns", "",
        ("row_kernel[(V, triton.cdiv(D, own.block_d))]",
         "row_kernel[(V, 1 if tile is None else triton.cdiv(D, own.block_d))]"),
    ),
    (
        KERNEL, "chunks of wide tables are summed in their first 1,024 columns", "",
        ("chunk_kernel[(chunks, triton.cdiv(D, chunk_tile.block_d))]",
         "chunk_kernel[(chunks, min(4, triton.cdiv(D, chunk_tile.block_d)))]"),
    ),
    (
        KERNEL, "wide tables are looked up in their first 1,024 columns", "",
        ("tile.block_n), triton.cdiv(D, tile.block_d))]",
         "tile.block_n), min(4, triton.cdiv(D, tile.block_d)))]"),
    ),
    (
        REFERENCE, "of several places with one id only the last counts", "",
        ("np.add.reduceat(widened(dout[order]), starts, axis=0)", "dout[order][starts]"),
    ),
    (
        KERNEL, "a negative id counts from the end of the table", "",
        (
            "known = (rows >= 0) & (rows < V)",
            "rows = tl.where(rows < 0, rows + V, rows)\n    known = (rows >= 0) & (rows < V)",
        ),
    ),
    (
        KERNEL, "a gradient that is asked for in strides is left where it was summed", "",
        ("return layout.copied_into(dtable, into)", "return dtable"),
    ),
    (
        KERNEL, "an id outside the table is clamped into it", "",
        ("known = (rows >= 0) & (rows < V)",
         "rows = tl.minimum(tl.maximum(rows, 0), V - 1)\n    known = rows >= 0"),
    ),
    (
        KERNEL, "gradients are summed in the storage dtype", "",
        ("acc += x", "acc = (acc + x).to(dout_ptr.dtype.element_ty).to(tl.float32)"),
    ),
    (
        KERNEL, "the last row of the table has no gradient written", "flash-linear-attention#892",
        ("row_kernel[(V, triton", "row_kernel[(max(V - 1, 1), triton"),
    ),
    (
        KERNEL, "places behind the last whole chunk are left out", "sycl-tla#489",
        ("tail, stop, columns, D,", "tail, tail, columns, D,"),
    ),
    (
        KERNEL, "gradients of equal ids overwrite each other", "",
        ("acc += tl.load(partial_ptr", "acc = tl.load(partial_ptr"),
    ),
)  # fmt: skip

_DROPOUT: tuple[Row, ...] = (
    (
        KERNEL, "an element is kept with the probability of dropping it", "",
        ("zero, zero, index % 8) >= threshold", "zero, zero, index % 8) < threshold"),
    ),
    (
        KERNEL, "the scale is of p before it is rounded", "",
        ("return 65536 / (65536 - threshold(p))", "return 1 / (1 - p)"),
    ),
    (
        KERNEL, "backward draws a mask of its own", "",
        ("_dropout(dout, cache.p, cache.seed)", "_dropout(dout, cache.p, cache.seed + 1)"),
    ),
    (
        KERNEL, "the upper half of the seed is lost", "",
        ("keep(tl.load(seed_ptr), index", "keep(tl.load(seed_ptr) & 0xFFFFFFFF, index"),
    ),
    (
        KERNEL, "every block has the same mask", "",
        ("y = tl.where(keep(tl.load(seed_ptr), index, threshold)",
         "y = tl.where(keep(tl.load(seed_ptr), index % BLOCK, threshold)"),
    ),
    (
        KERNEL, "what is kept is not scaled", "",
        ("y * scale, 0.0)", "y, 0.0)"),
    ),
    (
        KERNEL, "p is rounded down", "",
        ("round(float(p) * 65536)", "int(float(p) * 65536)"),
    ),
    (
        KERNEL, "a NaN that is kept is 0", "",
        ("y * scale, 0.0)", "tl.where(y == y, y, 0.0) * scale, 0.0)"),
    ),
    (
        REFERENCE, "Philox has nine rounds", "",
        ("for _ in range(ROUNDS):", "for _ in range(ROUNDS - 1):"),
    ),
)  # fmt: skip

_POOLING: tuple[Row, ...] = (
    (
        KERNEL, "of equal maxima the last of a program's places has the gradient", "",
        ("larger = (x > top) |", "larger = (x >= top) |"),
    ),
    (
        KERNEL, "of NaNs the last of a program's places has the gradient", "",
        ("((x != x) & (top == top))", "(x != x)"),
    ),
    (
        KERNEL, "a maximum of −∞ is 0", "",
        ('largest = tl.where(any_nan, float("nan"), largest)',
         'largest = tl.where(largest == -float("inf"), 0.0, largest)\n'
         '        largest = tl.where(any_nan, float("nan"), largest)'),
    ),
    (
        KERNEL, "the place of a maximum has 16 bits", "",
        ("argmax = torch.empty((B, D), dtype=torch.int32",
         "argmax = torch.empty((B, D), dtype=torch.int16"),
    ),
    (
        KERNEL, "the mean divides by the padded length", "",
        ("pooled = pooled / length.to(tl.float32)", "pooled = pooled / L"),
    ),
    (
        KERNEL, "the mean's gradient divides by the padded length", "",
        ("(1.0 / length.to(tl.float32))", "(1.0 / L)"),
    ),
    (
        KERNEL, "the maximum is at least 0", "",
        ('top = tl.full([BLOCK_L, BLOCK_D], -float("inf"), tl.float32)',
         "top = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)"),
    ),
    (
        KERNEL, "the maximum's gradient goes to the last that attains it", "",
        ("first = tl.min(tl.where(attains, where, 2147483647), axis=0)",
         "first = tl.max(tl.where(attains, where, -1), axis=0)"),
    ),
    (
        KERNEL, "the maximum does not see NaN", "",
        ("larger = (x > top) | ((x != x) & (top == top))", "larger = x > top"),
    ),
    (
        KERNEL, "padding gets a gradient", "",
        ("tl.where(rows < length, dout *", "tl.where(rows < L, dout *"),
    ),
    (
        REFERENCE, "the mean's gradient divides by the padded length", "",
        ("1 / cache.lengths[:, None, None]", "1 / np.full_like(cache.lengths, L)[:, None, None]"),
    ),
)  # fmt: skip

FAULTS = (
    *of("rotary", _ROTARY),
    *of("positional_encoding", _POSITIONAL_ENCODING),
    *of("embedding", _EMBEDDING),
    *of("dropout", _DROPOUT),
    *of("pooling", _POOLING),
)
