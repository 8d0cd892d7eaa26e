"""Equivalent mutants of the norms, the linear layer, activations, loss and optimizers."""

from __future__ import annotations

from twofold.core.verify.equivalents.entry import Equivalent, of
from twofold.core.verify.equivalents.reasons import (
    ANY_NEGATIVE,
    BOTH_FLOAT32,
    SAME_AT_EQUALITY,
    STORE_CASTS,
    UNSTORED,
)

_LAYER_NORM = of(
    "kernels/layer_norm.py",
    {
        BOTH_FLOAT32: (
            ("forward_kernel", "drop .to(tl.float32) of tl.load(residual_ptr*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(weight_ptr*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(h_ptr*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(dout_ptr*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(dh_ptr*"),
        ),
        UNSTORED: (
            ("forward_kernel",
             "tl.load(weight_ptr + columns, mask=columns < C, other=0.0): drop other"),
            ("forward_kernel",
             "tl.load(bias_ptr + columns, mask=columns < C, other=0.0): drop other"),
            ("backward_kernel", "tl.load(dh_ptr + at, mask=inside, other=0.0): drop other"),
        ),
        STORE_CASTS: (
            ("forward_kernel", "drop .to(out_ptr.dtype.element_ty) of out"),
            ("backward_kernel", "drop .to(dx_ptr.dtype.element_ty) of *"),
            ("add_partials_kernel", "drop .to(dweight_ptr.dtype.element_ty) of *"),
            ("add_partials_kernel", "drop .to(dbias_ptr.dtype.element_ty) of *"),
        ),
        "tl.where replaces what is outside": (
            ("backward_kernel", "tl.load(h_ptr + at, mask=inside, other=0.0): drop other"),
        ),
        "what is outside is replaced, or never stored": (
            ("backward_kernel",
             "tl.load(mean_ptr + rows, mask=rows < last, other=0.0): drop other"),
            ("backward_kernel",
             "tl.load(rstd_ptr + rows, mask=rows < last, other=0.0): drop other"),
        ),
        "its factor is 0 there": (
            ("backward_kernel", "xhat = tl.where(inside, (h - mean[:, None]) * rstd[:, None], 0.0)",
             "0.0 → 1.0"),
        ),
    },
) + of(
    "reference/layer_norm.py",
    {
        ANY_NEGATIVE: (
            ("backward", "d = widened(dout).reshape(-1, C)  # (R, C)", "1 → 2"),
            ("backward", "xhat = widened(cache.h).reshape(-1, C) - cache.mean", "1 → 2"),
        ),
    },
)  # fmt: skip

_RMS_NORM = of(
    "kernels/rms_norm.py",
    {
        BOTH_FLOAT32: (
            ("forward_kernel", "drop .to(tl.float32) of tl.load(residual_ptr*"),
            ("forward_kernel", "drop .to(tl.float32) of w"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(weight_ptr*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(h_ptr*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(dout_ptr*"),
            ("backward_kernel", "drop .to(tl.float32) of tl.load(dh_ptr*"),
        ),
        UNSTORED: (
            ("forward_kernel",
             "tl.load(weight_ptr + columns, mask=columns < C, other=0.0): drop other"),
            ("backward_kernel", "tl.load(dh_ptr + at, mask=inside, other=0.0): drop other"),
        ),
        STORE_CASTS: (
            ("forward_kernel", "drop .to(out_ptr.dtype.element_ty) of out"),
            ("backward_kernel", "drop .to(dx_ptr.dtype.element_ty) of dx"),
        ),
    },
) + of(
    "reference/rms_norm.py",
    {
        ANY_NEGATIVE: (
            ("backward", "d = widened(dout).reshape(-1, C)  # (R, C)", "1 → 2"),
            ("backward", "normed = widened(cache.h).reshape(-1, C) * cache.rstd", "1 → 2"),
        ),
    },
)  # fmt: skip

_LINEAR = of(
    "kernels/linear.py",
    {
        UNSTORED: (
            ("finish",
             "tl.load(bias_ptr + n * bias_strides[0], mask=n < N, other=0.0): drop other"),
            ("add_splits_kernel",
             "tl.load(sums_ptr + split * size + at, mask=inside, other=0.0): drop other"),
        ),
        "the first split takes all features: slower, and the same": (
            ("gemm_kernel",
             "features = tl.cdiv(tl.cdiv(K, BLOCK_K), tl.num_programs(1)) * BLOCK_K  # of a split",
             "1 → 2"),
        ),
        "it is added to float32": (
            ("finish", "drop .to(tl.float32) of tl.load(bias_ptr*"),
        ),
        STORE_CASTS: (
            ("finish", "drop .to(z_ptr.dtype.element_ty) of acc"),
            ("finish", "drop .to(c_ptr.dtype.element_ty) of acc"),
            ("add_splits_kernel", "drop .to(c_ptr.dtype.element_ty) of total"),
        ),
        "in how many parts decides what each needs, not what it is": (
            ("finish", "if PARTS > 1:", "*"),
            ("finish", "KIND, HAS_BIAS, SAVE_Z, PARTS // 2,", "2 → 3*"),
            ("finish", "PARTS // 2 → PARTS % 2*"),
        ),
    },
) + of(
    "reference/linear.py",
    {
        ANY_NEGATIVE: (
            ("backward", "dz = dz.reshape(-1, dz.shape[-1])  # (R, N)", "1 → 2"),
            (
                "backward",
                "x, dtype = widened(cache.x).reshape(-1, cache.x.shape[-1]), dout.dtype  # (R, K)",
                "1 → 2",
            ),
        ),
    },
)  # fmt: skip

_ACTIVATION = of(
    "kernels/activation.py",
    {
        SAME_AT_EQUALITY: (("activate", "z < 0 → z <= 0"), ("sigmoid", "z < 0 → z <= 0")),
        UNSTORED: (
            ("forward_kernel", "tl.load(x_ptr + index, mask=index < n, other=0.0): drop other"),
            ("backward_kernel", "tl.load(x_ptr + index, mask=index < n, other=0.0): drop other"),
            ("backward_kernel", "tl.load(dout_ptr + index, mask=index < n, other=0.0): drop other"),
            (
                "load_bias",
                "tl.load(bias_ptr + columns * bias_strides[0], mask=columns < C, other=0.0): "
                "drop other",
            ),
            ("bias_forward_kernel", "tl.load(x_ptr + at, mask=inside, other=0.0): drop other"),
        ),
        "the other of x and its bias is float32": (
            ("load_bias", "drop .to(tl.float32) of bias"),
            ("bias_forward_kernel", "drop .to(tl.float32) of tl.load(x_ptr*"),
            ("bias_backward_kernel", "drop .to(tl.float32) of tl.load(x_ptr*"),
        ),
        STORE_CASTS: (
            ("forward_kernel", "drop .to(out_ptr.dtype.element_ty) of *"),
            ("backward_kernel", "drop .to(dx_ptr.dtype.element_ty) of dx"),
            ("bias_forward_kernel", "drop .to(out_ptr.dtype.element_ty) of *"),
            ("bias_backward_kernel", "drop .to(dx_ptr.dtype.element_ty) of dx"),
            ("add_partials_kernel", "drop .to(dbias_ptr.dtype.element_ty) of *"),
        ),
        BOTH_FLOAT32: (
            ("backward_kernel", "drop .to(tl.float32) of tl.load(dout_ptr*"),
            ("bias_backward_kernel", "drop .to(tl.float32) of tl.load(dout_at*"),
        ),
    },
)

_GATED_ACTIVATION = of(
    "kernels/gated_activation.py",
    {
        UNSTORED: (
            ("load", "tl.load(at, mask=(rows < R) & (columns < C), other=0.0): drop other"),
        ),
        STORE_CASTS: (("store", "drop .to(y_ptr.dtype.element_ty) of y"),),
    },
)

_SOFTMAX = of(
    "kernels/softmax.py",
    {
        "any finite number will do: all of the row is −∞": (
            ("zero_if_empty", "0.0 → 1.0"),
        ),
        "it multiplies zeros": (("share", "1.0 → 1.001 (2)"),),
        STORE_CASTS: (("store", "drop .to(y_ptr.dtype.element_ty) of y"),),
        UNSTORED: (
            ("long_forward_kernel", "-float('inf') → float('inf') (2)"),
            ("long_backward_kernel", "0.0 → 1.0 (2)"),
            ("long_backward_kernel",
             "dout = load(dout_ptr, dout_strides, rows, columns, R, C, 0.0)", "0.0 → 1.0"),
        ),
        "its factor is 0 there": (
            ("backward_kernel", "0.0 → 1.0"),
            ("long_backward_kernel",
             "y = load(y_ptr, y_strides, rows, columns, R, C, 0.0)", "0.0 → 1.0"),
            ("long_backward_kernel",
             "common += load(dout_ptr, dout_strides, rows, columns, R, C, 0.0) * y", "0.0 → 1.0"),
        ),
        "a program has one row that is long": (
            ("long_backward_kernel", "tl.program_id(0).to(tl.int64) * BLOCK_R + "
             "tl.arange(0, BLOCK_R) → tl.program_id(0).to(tl.int64) * BLOCK_R - "
             "tl.arange(0, BLOCK_R)"),
            ("long_forward_kernel", "tl.program_id(0).to(tl.int64) * BLOCK_R + "
             "tl.arange(0, BLOCK_R) → tl.program_id(0).to(tl.int64) * BLOCK_R - "
             "tl.arange(0, BLOCK_R)"),
        ),
    },
)  # fmt: skip

_SOFTMAX_CROSS_ENTROPY = of(
    "kernels/softmax_cross_entropy.py",
    {
        "what is outside is replaced by 0": (
            ("load_index", "tl.load(targets_ptr + rows * targets_strides[0], mask=rows < R, "
                           "other=0): drop other"),
            ("load_targets", "tl.load(targets_ptr + at, mask=inside, other=0.0): drop other"),
            ("load_targets", "tl.load(weight_ptr + columns * weight_strides[0], mask=columns < C, "
                             "other=0.0): drop other"),
        ),
        "what is loaded in vain is not counted": (
            ("load_weight", "counts & valid → valid"),
        ),
        "row R is not stored": (
            ("rows_kernel", "counts = rows < R", "rows < R → rows <= R"),
            ("rows_kernel", "top = tl.where(rows < R, top, 0.0)", "rows < R → rows <= R"),
            ("rows_kernel", "top = tl.where(rows < R, top, 0.0)", "0.0 → 1.0"),
            ("rows_kernel", "total = tl.where(rows < R, total, 1.0)", "rows < R → rows <= R"),
            ("rows_kernel", "total = tl.where(rows < R, total, 1.0)", "1.0 → 1.001"),
        ),
        "any finite number will do: all logits are −∞ so far": (
            (
                "rows_kernel",
                'safe = tl.where(new_top == -float("inf"), 0.0, new_top)'
                "  # stands in for −∞ − (−∞)",
                "0.0 → 1.0",
            ),
        ),
        "what is done once more is stored by nobody": (
            ("rows_kernel", "for start in tl.range(0, C if KEEP or not ONE_CLASS*", "0 → 1 (2)"),
        ),
        "it is multiplied by 0 there": (
            ("rows_kernel", "loss += tl.sum(t * tl.where(t == 0.0*", "0.0 → 1.0 (2)"),
        ),
        "what is not loaded is ignored, or NaN already": (
            ("load_weight", "tl.load(at, mask=counts & valid, other=1.0): drop other"),
            ("rows_kernel", "tl.load(target, mask=counts & valid, other=0.0): drop other"),
        ),
        "the outer where has another value there": (
            (
                "load_scale",
                "scale = tl.where(divisor == 0.0, 0.0, 1.0 / tl.where(divisor == 0.0, 1.0, "
                "divisor))",
                "0.0 → 1.0 (3)",
            ),
            (
                "load_scale",
                "scale = tl.where(divisor == 0.0, 0.0, 1.0 / tl.where(divisor == 0.0, 1.0, "
                "divisor))",
                "1.0 → 1.001 (2)",
            ),
        ),
        "64 bits compare alike": (("rows_kernel", "drop .to(tl.int32) of index - start"),),
        "its target is 0 there, and its gradient never stored": (
            ("rows_kernel",
             "tl.load(logits_ptr + at, mask=inside, other=-float('inf')): drop other (2)"),
        ),
        BOTH_FLOAT32: (
            ("load_targets", "drop .to(tl.float32) of *"),
            ("rows_kernel", "drop .to(tl.float32) of *"),
            ("backward_kernel", "drop .to(tl.float32) of *"),
        ),
        STORE_CASTS: (
            ("rows_kernel", "drop .to(dlogits_ptr.dtype.element_ty) of d"),
            ("rows_kernel", "drop .to(loss_ptr.dtype.element_ty) of loss"),
            ("reduce_kernel", "drop .to(loss_ptr.dtype.element_ty) of loss"),
            ("backward_kernel", "drop .to(dlogits_ptr.dtype.element_ty) of saved * dloss"),
        ),
        UNSTORED: (
            ("backward_kernel",
             "tl.load(saved_ptr + index, mask=index < n, other=0.0): drop other"),
            ("backward_kernel", "tl.load(at, mask=index < n, other=0.0): drop other"),
        ),
    },
)  # fmt: skip

_OPTIMIZERS = of(
    "kernels/optimizers.py",
    {
        BOTH_FLOAT32: (("gradient", "drop .to(tl.float32) of tl.load(norm_ptr)"),),
        SAME_AT_EQUALITY: (("gradient", "norm > max_norm → norm >= max_norm"),),
        STORE_CASTS: (("put", "drop .to(ptr.dtype.element_ty) of value"),),
    },
) + of(
    "reference/optimizers.py",
    {SAME_AT_EQUALITY: (("clip_factor", "norm > max_norm → norm >= max_norm"),)},
)

EQUIVALENT: tuple[Equivalent, ...] = (
    *_LAYER_NORM,
    *_RMS_NORM,
    *_LINEAR,
    *_ACTIVATION,
    *_GATED_ACTIVATION,
    *_SOFTMAX,
    *_SOFTMAX_CROSS_ENTROPY,
    *_OPTIMIZERS,
)
