"""Faults of the linear layer, activations, the loss and the optimizers."""

from __future__ import annotations

from twofold.core.verify.faults.entry import Row, of

KERNEL, REFERENCE = "kernels/{}.py", "reference/{}.py"

_LINEAR: tuple[Row, ...] = (
    (
        KERNEL, "the activation is of the stored sum", "",
        ("acc = activate(acc, KIND)",
         "acc = activate(acc.to(c_ptr.dtype.element_ty).to(tl.float32), KIND)"),
    ),
    (
        KERNEL, "backward differentiates the activation at its result", "",
        ('z = y if activation == "relu" else torch.empty_like(y)', "z = y"),
    ),
    (
        KERNEL, "the accumulator is in the storage dtype", "",
        ("acc = tl.dot(a, b, acc, input_precision=PRECISION)",
         "acc = tl.dot(a, b, acc, input_precision=PRECISION).to(a.dtype).to(tl.float32)"),
    ),
    (
        KERNEL, "tf32 though nobody allowed it", "",
        ("float32_products(allow_tf32)", "float32_products(True)"),
    ),
    (
        KERNEL, "the remainder of the summed axis is left out", "sycl-tla#489",
        ("for start in range(0, features, BLOCK_K):",
         "for start in range(0, tl.minimum(features, K // BLOCK_K * BLOCK_K - begin), BLOCK_K):"),
    ),
    (
        KERNEL, "a NaN counts as 0", "",
        ("acc = tl.dot(a, b, acc, input_precision=PRECISION)",
         "acc = tl.dot(tl.where(a == a, a, 0.0), b, acc, input_precision=PRECISION)"),
    ),
    (
        REFERENCE, "the bias's gradient is a mean", "",
        ("dz.sum(axis=0), dtype, dbias) if", "dz.mean(axis=0), dtype, dbias) if"),
    ),
    (
        REFERENCE, "the activation is not differentiated", "",
        ("dz = activations.activate_grad(z, cache.kept, cache.activation)", "dz = np.ones_like(z)"),
    ),
)  # fmt: skip

_ACTIVATION: tuple[Row, ...] = (
    (
        KERNEL, "gelu is its tanh form", "",
        ("return z * normal_cdf(z)", "return z / (1.0 + tanh_decay(z))"),
    ),
    (
        KERNEL, "gelu's gradient is that of its tanh form", "",
        ("return normal_cdf(z) + z * (tl.exp(-0.5 * z * z) * INVERSE_SQRT_2PI)",
         'return activate_grad(z, "gelu_tanh")'),
    ),
    (
        KERNEL, "1 − g cancels in the gradient", "",
        ("* gate * decay)", "* (1.0 - gate))"),
    ),
    (
        KERNEL, "the exponential overflows in the gradient", "",
        (
            "    z = tl.clamp(z, -SATURATED, SATURATED, propagate_nan=tl.PropagateNan.ALL)\n"
            "    return",
            "    return",
        ),
    ),
    (
        KERNEL, "1 − tanh² cancels in the gradient", "",
        ("return 4.0 * decay * gate * gate", "return 1.0 - tanh(z) * tanh(z)"),
    ),
    (
        KERNEL, "silu's gradient is its gate", "",
        ("return share + z * density", "return share"),
    ),
    (
        KERNEL, "1 − σ cancels in silu's gradient", "",
        ("return share + z * density", "return share + z * share * (1.0 - share)"),
    ),
    (
        KERNEL, "σ′ is e⁻ᶻ·σ², which is ∞·0", "",
        ("decay = tl.exp(-tl.abs(z))", "decay = tl.exp(-z)"),
        ("return tl.where(z < 0, far, near), near * far", "return near, near * far"),
    ),
    (
        KERNEL, "relu turns NaN into 0", "",
        ("tl.where(z < 0, 0.0, z)", "tl.where(z > 0, z, 0.0)"),
    ),
    (
        KERNEL, "the sum with the bias is rounded before it is activated", "",
        ("    z += load_bias(bias_ptr, bias_strides, columns, C)\n    # (2)",
         "    z += load_bias(bias_ptr, bias_strides, columns, C)\n"
         "    z = z.to(x_ptr.dtype.element_ty).to(tl.float32)\n    # (2)"),
    ),
    (
        KERNEL, "backward differentiates at the input, without its bias", "",
        ("        HAS_BIAS=bias is not None,", "        HAS_BIAS=False,"),
    ),
    (
        KERNEL, "the bias's gradient is of dout, not of dx", "",
        ("            dx *= activate_grad(z, KIND)\n",
         "            dout = dx\n            dx *= activate_grad(z, KIND)\n"),
        ("        dbias += dx\n", '        dbias += dout if KIND != "none" else dx\n'),
    ),
    (
        KERNEL, "the bias's gradient adds up numbers in the storage dtype", "",
        ("        dbias += dx\n",
         "        dbias += dx.to(dx_ptr.dtype.element_ty).to(tl.float32)\n"),
    ),
    (
        REFERENCE, "the bias's gradient is a mean", "",
        ("dx.sum(axis=rows), dout.dtype", "dx.mean(axis=rows), dout.dtype"),
    ),
    (
        REFERENCE, "silu's gradient is its gate", "",
        ("_sigmoid(z, kept) + z * (kept / np.square(1 + kept))", "_sigmoid(z, kept)"),
    ),
    (
        REFERENCE, "gelu's gradient has no density", "",
        ("        result += kept\n        return result\n",
         "        result = kept + 0 * z\n        return result\n"),
    ),
)  # fmt: skip

_GATED_ACTIVATION: tuple[Row, ...] = (
    (
        KERNEL, "dgate is written as dup lies", "",
        ("store(dgate_ptr, dgate_strides,", "store(dgate_ptr, dup_strides,"),
    ),
    (
        KERNEL, "a NaN in up is 0 in the gradient of the gate", "",
        ("dup, df = dout * activate(gate, KIND), dout * up",
         "dup, df = dout * activate(gate, KIND), dout * tl.where(up == up, up, 0.0)"),
    ),
    (
        KERNEL, "gate and up are exchanged", "",
        ("    _launch(forward_kernel, (gate, up), (out,), kind, tile)",
         "    _launch(forward_kernel, (up, gate), (out,), kind, tile)"),
    ),
    (
        KERNEL, "dgate and dup are exchanged", "",
        ("    _launch(backward_kernel, (dout, gate, up), grads, kind, tile)",
         "    _launch(backward_kernel, (dout, gate, up), grads[::-1], kind, tile)"),
    ),
    (
        KERNEL, "the activated gate is rounded to the storage dtype before the product", "",
        ("    out = f * load(up_ptr,",
         "    f = f.to(out_ptr.dtype.element_ty).to(tl.float32)\n    out = f * load(up_ptr,"),
    ),
    (
        KERNEL, "the activated gate is rounded to the storage dtype in backward", "",
        ("dup, df = dout * activate(gate, KIND), dout * up",
         "f = activate(gate, KIND).to(dup_ptr.dtype.element_ty).to(tl.float32)\n"
         "    dup, df = dout * f, dout * up"),
    ),
    (
        KERNEL, "dout·up is rounded to the storage dtype", "",
        ("dgate = df * activate_grad(gate, KIND)",
         "dgate = df.to(dgate_ptr.dtype.element_ty).to(tl.float32) * activate_grad(gate, KIND)"),
    ),
    (
        KERNEL, "the gate's slope is the gate: the term with z is missing", "",
        ("dgate = df * activate_grad(gate, KIND)", "dgate = df * activate(gate, KIND) / gate"),
    ),
    (
        KERNEL, "the activation is always SiLU", "",
        ("        KIND=kind,\n", '        KIND="silu",\n'),
    ),
    (
        KERNEL, "rows of one half are taken to be as far apart as those of a whole", "",
        ("*(x.stride() for x in rows),", "*((C, 1) for _ in rows),"),
    ),
    (
        KERNEL, "the packed gradient is a copy that nobody gets", "",
        ("            x.copy_(made.view(x.shape))", "            pass"),
    ),
    (
        REFERENCE, "dgate is of the product, without up", "",
        ("dup, df = d * f, d * up", "dup, df = d * f, d"),
    ),
    (
        REFERENCE, "gradients are not written where they were asked for", "",
        ("zip((dgate, dup), to, strict=True)", "zip((dgate, dup), (None, None), strict=True)"),
    ),
)  # fmt: skip

_SOFTMAX: tuple[Row, ...] = (
    (
        KERNEL, "the maximum is not subtracted", "",
        ('return tl.where(top == -float("inf"), 0.0, top)', "return 0.0 * tl.maximum(top, 0.0)"),
    ),
    (
        KERNEL, "a row of −∞ is NaN", "",
        ('return tl.where(top == -float("inf"), 0.0, top)', "return top"),
    ),
    (
        KERNEL, "a row of −∞ is divided by 0", "",
        ("return 1.0 / tl.where(total == 0.0, 1.0, total)", "return 1.0 / total"),
    ),
    (
        KERNEL, "padding is 0, not −∞", "",
        ('x = load(x_ptr, x_strides, rows, columns, R, C, -float("inf"))\n    # (1) maximum\n',
         "x = load(x_ptr, x_strides, rows, columns, R, C, 0.0)\n    # (1) maximum\n"),
    ),
    (
        KERNEL, "the sum is not rescaled when the maximum moves", "",
        ("total = total * tl.exp(before - zero_if_empty(top)) + tl.sum(y, axis=1)",
         "total = total + tl.sum(y, axis=1)"),
    ),
    (
        KERNEL, "exponentials are in the storage dtype before they are added up", "",
        ("    total = tl.sum(y, axis=1)\n    # (3)",
         "    y = y.to(y_ptr.dtype.element_ty).to(tl.float32)\n"
         "    total = tl.sum(y, axis=1)\n    # (3)"),
    ),
    (
        KERNEL, "backward is that of the elements, each alone", "",
        ("    delta = tl.sum(dout * y, axis=1)\n", "    delta = tl.sum(dout * y, axis=1) * 0.0\n"),
    ),
    (
        KERNEL, "a long row far below 0 is NaN: 0 stands in for the maximum before it", "",
        ("tl.exp(before - ", "tl.exp(zero_if_empty(before) - "),
    ),
    (
        KERNEL, "a long row's sum passes over NaN", "",
        ("        total = total * tl.exp(before",
         "        y = tl.where(y == y, y, 0.0)\n        total = total * tl.exp(before"),
    ),
    (
        KERNEL, "what a long row's gradients have in common is summed in the storage dtype", "",
        ("R, C, 0.0) * y\n    delta",
         "R, C, 0.0) * y\n"
         "        common = common.to(dx_ptr.dtype.element_ty).to(tl.float32)\n    delta"),
    ),
    (
        REFERENCE, "the gradient's common part is a mean", "",
        ('delta = np.einsum("...c,...c->...", dout, y)', "delta = (dout * y).mean(axis=-1)"),
    ),
)  # fmt: skip

_SOFTMAX_CROSS_ENTROPY: tuple[Row, ...] = (
    (
        KERNEL, "with reduction none the gradient is of the first row's loss", "Liger-Kernel#968",
        ("PER_ROW=cache.per_row", "PER_ROW=False"),
    ),
    (
        KERNEL, "ignored rows are smoothed", "pytorch#73205",
        ('float("nan")), 0.0)', 'float("nan")), elsewhere)'),
    ),
    (
        KERNEL, "the mean divides by all rows, ignored or not", "",
        ('has_divisor = reduction == "mean" and not probabilities', "has_divisor = False"),
    ),
    (
        KERNEL, "the mean divides by rows, not by their weights", "",
        ("HAS_WEIGHT=weight is not None, BLOCK=BLOCK", "HAS_WEIGHT=False, BLOCK=BLOCK"),
    ),
    (
        KERNEL, "the logarithm is of a softmax that underflows", "",
        ("log_total[:, None] - shifted)", "-tl.log(tl.exp(shifted) / total[:, None]))"),
    ),
    (
        KERNEL, "the maximum is not subtracted", "",
        ("        top = new_top\n", "        top = new_top * 0.0\n"),
        ('safe = tl.where(new_top == -float("inf"), 0.0, new_top)', "safe = top * 0.0"),
    ),
    (
        KERNEL, "the mean of nothing is NaN", "",
        ("tl.where(divisor == 0.0, 0.0, 1.0 / tl.where(divisor == 0.0, 1.0, divisor))",
         "1.0 / divisor"),
    ),
    (
        KERNEL, "a class index outside the classes is no fault", "",
        ('tl.where(valid[:, None], t, float("nan"))', "t"),
    ),
    (
        KERNEL, "beyond 65,536 rows the divisor's shares overlap", "",
        ("first = share * rows_per_share", "first = share * BLOCK"),
    ),
    (
        KERNEL, "the loss is of log Σ e^x, in which large logits drown it", "",
        ("mass * (log_total - (logit - top))", "mass * ((log_total + top) - logit)"),
    ),
    (
        KERNEL, "the target's weight is read as if weights were contiguous", "",
        ("at = weight_ptr + index * weight_strides[0]", "at = weight_ptr + index"),
    ),
    (
        KERNEL, "the divisor is of the first block of each share", "",
        ("index, counts, valid, HAS_WEIGHT)\n    tl.store",
         "index, counts & (start == first), valid, HAS_WEIGHT)\n    tl.store"),
    ),
    (
        REFERENCE, "what is smoothed is shared among the other classes alone", "",
        ("np.full((R, C), label_smoothing / C,",
         "np.full((R, C), label_smoothing / max(C - 1, 1),"),
    ),
    (
        REFERENCE, "the gradient forgets the weight of the target", "",
        ("dlogits = np.multiply(p, mass, out=p)", "dlogits = p"),
    ),
    (
        REFERENCE, "ignored rows are smoothed", "pytorch#73205",
        ("        t[~counts] = 0\n", ""),
    ),
)  # fmt: skip

_OPTIMIZERS: tuple[Row, ...] = (
    (
        KERNEL, "eps is scaled by the bias correction", "tensorflow#9047",
        ("(m / (tl.sqrt(v * unbias2) + eps))", "(m / ((tl.sqrt(v) + eps) * tl.sqrt(unbias2)))"),
    ),
    (
        KERNEL, "the bias correction is one step behind", "oneflow#5960",
        ("lr / (1 - beta1**step)", "lr / (1 - beta1 ** max(1, step - 1))"),
        ("1 / (1 - beta2**step)", "1 / (1 - beta2 ** max(1, step - 1))"),
    ),
    (
        KERNEL, "AdamW's decay goes through the moments", "",
        ("0 if decoupled else decays,", "decays,"),
        ("decays if decoupled else 0,", "0,"),
    ),
    (
        KERNEL, "eps stands inside the root", "",
        ("tl.sqrt(v * unbias2) + eps", "tl.sqrt(v * unbias2 + eps)"),
    ),
    (
        KERNEL, "Nesterov's momentum is the old one", "",
        ("g = g + momentum * b if NESTEROV else b", "g = g + (b - g) if NESTEROV else b"),
    ),
    (
        KERNEL, "a small gradient is scaled up to the largest norm", "",
        ("tl.where(norm > max_norm, max_norm / tl.maximum(norm, max_norm), 1.0)",
         "max_norm / tl.maximum(norm, 1e-30)"),
    ),
    (
        KERNEL, "the decay does not know the learning rate", "",
        ("1 - lr * weight_decay,", "1 - weight_decay,"),
    ),
    (
        KERNEL, "momentum is dampened", "",
        ("b = momentum * get(momentum_ptr, momentum_stride, index, inside) + g",
         "b = momentum * get(momentum_ptr, momentum_stride, index, inside) + (1.0 - momentum) * g"),
    ),
    (
        KERNEL, "the norm is of the first share", "",
        ("mask=program < programs, other=0.0)", "mask=program < 1, other=0.0)"),
    ),
    (
        KERNEL, "clipping divides by the norm and 10⁻⁶, as torch's does", "",
        ("tl.where(norm > max_norm, max_norm / tl.maximum(norm, max_norm), 1.0)",
         "tl.minimum(max_norm / (norm + 1e-6), 1.0)"),
    ),
    (
        KERNEL, "v is read as if it lay as m does", "",
        ("get(v_ptr, v_stride, index, inside) + rest2",
         "get(v_ptr, m_stride, index, inside) + rest2"),
    ),
    (
        KERNEL, "the norm passes over NaN", "",
        ("total += g * g", "total += tl.where(g == g, g * g, 0.0)"),
    ),
    (
        REFERENCE, "the decay comes before clipping", "",
        ("    g = widened(g) * clip\n    if decay:\n        g += decay * theta\n    return g",
         "    g = g + decay * theta\n    return np.asarray(g * clip)"),
    ),
    (
        REFERENCE, "the bias correction is one step ahead", "oneflow#5960",
        ("1 - beta1**step, 1 - beta2**step", "1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)"),
    ),
    (
        REFERENCE, "eps is scaled by the bias correction", "tensorflow#9047",
        ("        g += eps\n", "        g += eps / np.sqrt(correction2)\n"),
    ),
)  # fmt: skip

FAULTS = (
    *of("linear", _LINEAR),
    *of("activation", _ACTIVATION),
    *of("gated_activation", _GATED_ACTIVATION),
    *of("softmax", _SOFTMAX),
    *of("softmax_cross_entropy", _SOFTMAX_CROSS_ENTROPY),
    *of("optimizers", _OPTIMIZERS),
)
