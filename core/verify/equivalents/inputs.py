"""Equivalent mutants of embedding, positions, dropout and pooling."""

from __future__ import annotations

from twofold.core.verify.equivalents.entry import Equivalent, of
from twofold.core.verify.equivalents.reasons import (
    ANY_NEGATIVE,
    BOTH_FLOAT32,
    STORE_CASTS,
    UNSTORED,
)

_ROTARY = of(
    "kernels/rotary.py",
    {
        STORE_CASTS: (("turn_head", "drop .to(y_ptr.dtype.element_ty) of *"),),
        BOTH_FLOAT32: (
            ("turn_head", "drop .to(tl.float32) of *"),
            ("rotary_kernel", "drop .to(tl.float32) of *"),
        ),
        UNSTORED: (
            ("turn_head",
             "tl.load(at(x_ptr, x_strides, b, h, rows, both), mask=inside, other=0.0): "
             "drop other"),
            ("turn_head",
             "tl.load(at(x_ptr, x_strides, b, h, rows, f), mask=inside, other=0.0): "
             "drop other"),
            ("turn_head",
             "tl.load(at(x_ptr, x_strides, b, h, rows, second), mask=inside, other=0.0): "
             "drop other"),
            ("turn_head",
             "tl.load(at(x_ptr, x_strides, b, h, rows, rest), mask=inside, other=0.0): "
             "drop other"),
            ("rotary_kernel", "tl.load(cos_ptr + cos_at, mask=inside, other=0.0): drop other"),
            ("rotary_kernel", "tl.load(sin_ptr + sin_at, mask=inside, other=0.0): drop other"),
        ),
    },
) + of(
    "reference/rotary.py",
    {
        ANY_NEGATIVE: (("turn", "cos, sin = (a.reshape(*", "1 → 2"),),
        "finer tables are no fault, and the result has the dtype of x": (
            ("turn", "drop .astype(x.dtype) of a.reshape(-1, 1, *a.shape[-2:])"),
        ),
    },
)  # fmt: skip

_POSITIONAL_ENCODING = of(
    "kernels/positional_encoding.py",
    {
        STORE_CASTS: (("forward_kernel", "drop .to(out_ptr.dtype.element_ty) of x"),),
        BOTH_FLOAT32: (
            ("forward_kernel", "drop .to(tl.float32) of x"),
            ("forward_kernel", "drop .to(tl.float32) of p"),
        ),
        UNSTORED: (
            ("forward_kernel", "tl.load(ids_ptr + n, mask=n < N, other=0): drop other"),
            ("forward_kernel", "tl.load(positions_ptr + n, mask=n < N, other=0): drop other"),
        ),
    },
) + of(
    "reference/positional_encoding.py",
    {
        "a product with 1 changes nothing, and no case has a scale of 1.001": (
            ("backward", "1.0 → 1.001"),
        ),
        "of float32 the sums are moved to where they belong, in vain": (
            ("backward", "dtable.dtype == dout.dtype → dtable.dtype != dout.dtype"),
        ),
    },
)  # fmt: skip

_EMBEDDING = of(
    "kernels/embedding.py",
    {
        STORE_CASTS: (
            ("forward_kernel", "drop .to(x.dtype) of tl.where(*"),
            ("row_kernel", "drop .to(dtable_ptr.dtype.element_ty) of *"),
        ),
        "it is added to float32": (("add_places", "drop .to(tl.float32) of tl.load(dout_ptr*"),),
        UNSTORED: (
            ("look_up", "tl.load(table_ptr + at, mask=mask, other=0.0): drop other"),
            ("forward_kernel", "tl.load(ids_ptr + n, mask=n < N, other=0): drop other"),
        ),
        "where it is not loaded, neither is what it points at": (
            ("add_places", "tl.load(order_ptr + i, mask=i < stop, other=0): drop other"),
        ),
        "sums a chunk of two ids too, which no row asks for": (
            (
                "chunk_kernel",
                "if tl.load(ordered_ptr + start) == tl.load(ordered_ptr + stop - 1):",
                "1 → 2",
            ),
        ),
    },
) + of(
    "reference/embedding.py",
    {
        ANY_NEGATIVE: (
            ("scatter_add", "flat, dout = ids.reshape(-1), dout.reshape(-1, D)", "1 → 2"),
            ("scatter_add", "flat, dout = ids.reshape(-1), dout.reshape(-1, D)", "1 → 2 (2)"),
        ),
        "no id is negative, so the first differs from either": (
            (
                "scatter_add",
                "starts = np.flatnonzero(np.diff(ordered, prepend=-1))  "
                "# where each distinct id begins",
                "1 → 2",
            ),
        ),
    },
)  # fmt: skip

_DROPOUT = of(
    "kernels/dropout.py",
    {
        "shows past 2³² counters, beyond these cases": (
            ("keep", "32 → 33"),
            ("keep", "32 → 31"),
        ),
        "a draw has 16 bits, and compares alike as an unsigned number": (
            ("draw", "drop .to(tl.int32) of *"),
        ),
        STORE_CASTS: (("dropout_kernel", "drop .to(y_ptr.dtype.element_ty) of y"),),
        BOTH_FLOAT32: (("dropout_kernel", "drop .to(tl.float32) of tl.load(x_ptr*"),),
        UNSTORED: (
            ("dropout_kernel", "tl.load(x_ptr + index, mask=inside, other=0.0): drop other"),
        ),
    },
) + of(
    "reference/dropout.py",
    {
        "philox makes it uint64 whatever it is": (
            ("keep_mask", "drop .astype(np.uint32) of *"),
        ),
        "the words are vectors: their last new axis is 1": (
            ("philox_draws", "-1 → 1"),
        ),
        ANY_NEGATIVE: (("philox_draws", "1 → 2 (2)"),),
        "philox returns uint32, little-endian on every machine that Triton knows": (
            ("philox_draws", "drop .astype('<u4') of *"),
        ),
        "its one caller here casts the words, which are below 2³²": (
            ("philox", "drop .astype(np.uint32) of c"),
        ),
    },
)  # fmt: skip

_POOLING = of(
    "kernels/pooling.py",
    {
        "0 is added, for the shape": (
            ("forward_kernel",
             "l[:, None] + tl.zeros([BLOCK_L, BLOCK_D], tl.int32) → l[:, None] - *"),
        ),
        "the interpreter broadcasts; a compiled loop does not take it": (
            ("forward_kernel", "l[:, None] + tl.zeros([BLOCK_L, BLOCK_D], tl.int32) → l[:, None]"),
        ),
        "counts where nothing exceeds −∞, and there it is the first position either way": (
            ("forward_kernel", "l[:, None] + tl.zeros([BLOCK_L, BLOCK_D], tl.int32) → tl.zeros*"),
        ),
        "a wider integer of the same value": (("forward_kernel", "drop .to(tl.int32) of *"),),
        "division by an integer is in float32, too": (
            ("forward_kernel", "drop .to(tl.float32) of length"),
            ("backward_kernel", "drop .to(tl.float32) of length"),
        ),
        STORE_CASTS: (
            ("forward_kernel", "drop .to(out_ptr.dtype.element_ty) of *"),
            ("backward_kernel", "drop .to(dx_ptr.dtype.element_ty) of *"),
        ),
        "where a NaN was the result is NaN": (
            ("forward_kernel", 'largest = tl.max(tl.where(is_nan, -float("inf"), top), axis=0)',
             "-float('inf') → float('inf')"),
        ),
        "no sequence is so long": (("forward_kernel", "2147483647 → 2147483646"),),
        UNSTORED: (
            ("backward_kernel", "tl.load(dout_at, mask=columns < D, other=0.0): drop other"),
            ("backward_kernel",
             "tl.load(dout_at + (D if MEAN else 0), mask=columns < D, other=0.0): drop other"),
            ("backward_kernel",
             "tl.load(argmax_ptr + b * D + columns, mask=columns < D, other=-1): drop other"),
        ),
        BOTH_FLOAT32: (("backward_kernel", "drop .to(tl.float32) of tl.load(*"),),
    },
) + of(
    "reference/pooling.py",
    {
        "a product in float64, rounded to dx": (
            ("backward", "drop .astype(dout.dtype) of 1 / cache.lengths[:, None, None]"),
        ),
    },
)  # fmt: skip

EQUIVALENT: tuple[Equivalent, ...] = (
    *_ROTARY,
    *_POSITIONAL_ENCODING,
    *_EMBEDDING,
    *_DROPOUT,
    *_POOLING,
)
