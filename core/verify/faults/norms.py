"""Faults of layer norm and of RMSNorm."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

KERNEL, REFERENCE = "kernels/{}.py", "reference/{}.py"

_LAYER_NORM: tuple[Row, ...] = (
    (
        KERNEL, "the variance is E[x²] − E[x]²", "tt-metal#45968",
        ("variance = tl.sum(centred * centred, axis=1) / C",
         "variance = tl.sum(h * h, axis=1) / C - mean * mean"),
    ),
    (
        KERNEL, "eps stands outside the root", "",
        ("rstd = 1.0 / tl.sqrt(variance + eps)", "rstd = 1.0 / (tl.sqrt(variance) + eps)"),
    ),
    (
        KERNEL, "a constant row gives NaN", "onnxruntime#21935",
        ("rstd = 1.0 / tl.sqrt(variance + eps)", "rstd = 1.0 / tl.sqrt(variance)"),
    ),
    (
        KERNEL, "eps is lost in float16", "",
        ("tl.sqrt(variance + eps)",
         "tl.sqrt(variance + (eps + 0 * mean).to(tl.float16).to(tl.float32))"),
    ),
    (
        KERNEL, "backward broadcasts the mean weight", "attorch#17",
        ("g = dout * w[None, :]", "g = dout * (tl.sum(w, axis=0) / C)"),
    ),
    (
        KERNEL, "padding counts in the variance", "",
        ("centred = tl.where(inside, h - mean[:, None], 0.0)", "centred = h - mean[:, None]"),
    ),
    (
        KERNEL, "statistics are kept in the storage dtype", "",
        ("mean = torch.empty(R, dtype=torch.float32,", "mean = torch.empty(R, dtype=x.dtype,"),
    ),
    (
        KERNEL, "what is normalised is not what was stored", "",
        ("        h = stored.to(tl.float32)\n", ""),
    ),
    (
        KERNEL, "the variance divides by C − 1", "",
        ("variance = tl.sum(centred * centred, axis=1) / C",
         "variance = tl.sum(centred * centred, axis=1) / tl.maximum(C - 1, 1)"),
    ),
    (
        KERNEL, "backward draws the mask of another row", "",
        ("kept = dropout.keep(tl.load(seed_ptr), at, threshold)",
         "kept = dropout.keep(tl.load(seed_ptr), at - first * C, threshold)"),
    ),
    (
        KERNEL, "the residual's gradient is dropped out, too", "",
        ("if cache.has_residual and has_dropout else dx", "if False else dx"),
        ("HAS_RESIDUAL=cache.has_residual", "HAS_RESIDUAL=False"),
    ),
    (
        KERNEL, "a NaN counts as 0", "",
        ("    # (2) mean, and the variance about it\n", "    h = tl.where(h == h, h, 0.0)\n"),
    ),
    (
        REFERENCE, "the mean is differentiated as a constant", "",
        ("    g -= along_mean\n", ""),
    ),
    (
        REFERENCE, "the standard deviation is differentiated as a constant", "",
        ("    g -= xhat\n", ""),
    ),
)  # fmt: skip

_RMS_NORM: tuple[Row, ...] = (
    (
        KERNEL, "eps stands outside the root", "",
        ("rstd = 1.0 / tl.sqrt(mean_square + eps)", "rstd = 1.0 / (tl.sqrt(mean_square) + eps)"),
    ),
    (
        KERNEL, "the mean is over the padded width", "",
        ("mean_square = tl.sum(h * h, axis=1) / C",
         "mean_square = tl.sum(h * h, axis=1) / BLOCK_C"),
    ),
    (
        KERNEL, "the squares are not divided by their count", "",
        ("mean_square = tl.sum(h * h, axis=1) / C", "mean_square = tl.sum(h * h, axis=1)"),
    ),
    (
        KERNEL, "the squares are those of x in the storage dtype", "",
        ("mean_square = tl.sum(h * h, axis=1) / C",
         "mean_square = tl.sum((h * h).to(out_ptr.dtype.element_ty).to(tl.float32), axis=1) / C"),
    ),
    (
        KERNEL, "what is normalised is rounded before the gain", "",
        ("out = h * rstd[:, None] * (w",
         "out = (h * rstd[:, None]).to(out_ptr.dtype.element_ty).to(tl.float32) * (w"),
    ),
    (
        KERNEL, "eps is lost in float16", "",
        ("tl.sqrt(mean_square + eps)",
         "tl.sqrt(mean_square + (eps + 0 * mean_square).to(tl.float16).to(tl.float32))"),
    ),
    (
        KERNEL, "what is normalised is not what was stored", "",
        ("        h = stored.to(tl.float32)\n", ""),
    ),
    (
        KERNEL, "the root is kept in the storage dtype", "",
        ("rstd = torch.empty(R, dtype=torch.float32,", "rstd = torch.empty(R, dtype=x.dtype,"),
    ),
    (
        KERNEL, "backward forgets the offset", "",
        ("mask=columns < C, other=0.0).to(tl.float32) + offset",
         "mask=columns < C, other=0.0).to(tl.float32)"),
    ),
    (
        KERNEL, "backward broadcasts the mean weight", "attorch#17",
        ("g = dout * w[None, :]", "g = dout * (tl.sum(w, axis=0) / C)"),
    ),
    (
        KERNEL, "the gain's gradient is of x that is not normalised", "",
        ("dweight += tl.sum(dout * normed, axis=0)", "dweight += tl.sum(dout * h, axis=0)"),
    ),
    (
        KERNEL, "the stream's own gradient is left out", "",
        ("HAS_DH=dh is not None", "HAS_DH=False"),
    ),
    (
        KERNEL, "a NaN counts as 0", "",
        ("    mean_square = tl.sum(h * h, axis=1) / C",
         "    h = tl.where(h == h, h, 0.0)\n    mean_square = tl.sum(h * h, axis=1) / C"),
    ),
    (
        KERNEL, "the squares pass over NaN", "",
        ("mean_square = tl.sum(h * h, axis=1) / C",
         "mean_square = tl.sum(tl.where(h == h, h * h, 0.0), axis=1) / C"),
    ),
    (
        REFERENCE, "the root is differentiated as a constant", "",
        ("    g -= normed\n", ""),
    ),
    (
        REFERENCE, "backward forgets the offset", "",
        ("g = d * (widened(cache.weight) + cache.offset)", "g = d * widened(cache.weight)"),
    ),
)  # fmt: skip

FAULTS = (
    *of("layer_norm", _LAYER_NORM),
    *of("rms_norm", _RMS_NORM),
)
