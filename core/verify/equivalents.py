"""Mutants that no contract can kill, each with the reason.

An entry names its mutant by file, function, line of code and change, so that it goes stale when the
line changes and is then reported. `ANY` stands for every value, a trailing `*` for every ending.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from twofold.core.verify.mutation import Mutant

ANY = "*"


class Equivalent(NamedTuple):
    """A mutant, or a kind of mutants, and why its numbers are right."""

    file: str
    function: str
    text: str
    what: str
    reason: str

    def names(self, mutant: Mutant) -> bool:
        """Return whether this is the entry of a mutant."""
        pairs = zip(self[:4], (mutant.file, mutant.function, mutant.text, mutant.what), strict=True)
        return all(
            name == x or (name.endswith(ANY) and x.startswith(name[: -len(ANY)]))
            for name, x in pairs
        )


# (file, function, line, change, reason)
EQUIVALENT = tuple(
    Equivalent(*entry)
    for entry in (
        (ANY, ANY, ANY, "drop .to(tl.int64) of *", "shows past 2³¹ elements, beyond these cases"),
        (
            "kernels/rotary.py", "turn", ANY, "drop .to(y_ptr.dtype.element_ty) of *",
            "tl.store casts to what its pointer is of",
        ),
        (
            "kernels/rotary.py", ANY, ANY, "drop .to(tl.float32) of *",
            "one factor in float32 makes the product float32",
        ),
        (
            "kernels/rotary.py", "turn", ANY,
            "tl.load(at(x_ptr, x_strides, b, h, rows, first), mask=inside, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/rotary.py", "turn", ANY,
            "tl.load(at(x_ptr, x_strides, b, h, rows, second), mask=inside, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/rotary.py", "turn", ANY,
            "tl.load(at(x_ptr, x_strides, b, h, rows, rest), mask=inside, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/rotary.py", "rotary_kernel", ANY,
            "tl.load(cos_ptr + cos_at, mask=inside, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/rotary.py", "rotary_kernel", ANY,
            "tl.load(sin_ptr + sin_at, mask=inside, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "reference/rotary.py", "turn", ANY, "1 → 2",
            "NumPy takes any negative number for the unknown size",
        ),
        (
            "reference/rotary.py", "turn", ANY,
            "drop .astype(x.dtype) of a.reshape(-1, 1, *a.shape[-2:])",
            "finer tables are no fault, and the result has the dtype of x",
        ),
        (
            "reference/pooling.py", "backward", ANY,
            "drop .astype(dout.dtype) of cache.lengths[:, None]",
            "the same quotient, rounded a line later",
        ),
        (
            "reference/pooling.py", "backward", ANY, "drop .astype(dout.dtype) of share[..., None]",
            "it has that dtype",
        ),
        (
            "reference/pooling.py", "backward", ANY,
            "dx += dout[:, None, :D] * share[..., None].astype(dout.dtype) → dx = *",
            "dx is zero there",
        ),
        (
            "kernels/pooling.py", "forward_kernel", ANY,
            "l[:, None] + tl.zeros([BLOCK_L, BLOCK_D], tl.int32) → l[:, None] - *",
            "0 is added, for the shape",
        ),
        (
            "kernels/pooling.py", "forward_kernel", ANY,
            "l[:, None] + tl.zeros([BLOCK_L, BLOCK_D], tl.int32) → l[:, None]",
            "the interpreter broadcasts; a compiled loop does not take it",
        ),
        (
            "kernels/pooling.py", "forward_kernel", ANY,
            "l[:, None] + tl.zeros([BLOCK_L, BLOCK_D], tl.int32) → tl.zeros*",
            "counts where nothing exceeds −∞, and there it is the first position either way",
        ),
        (
            "kernels/pooling.py", "forward_kernel", ANY, "drop .to(tl.int32) of *",
            "a wider integer of the same value",
        ),
        (
            "kernels/pooling.py", ANY, ANY, "drop .to(tl.float32) of length",
            "division by an integer is in float32, too",
        ),
        (
            "kernels/pooling.py", "forward_kernel", ANY,
            "drop .to(out_ptr.dtype.element_ty) of *", "tl.store casts to what its pointer is of",
        ),
        (
            "kernels/pooling.py", "forward_kernel",
            'largest = tl.max(tl.where(is_nan, -float("inf"), top), axis=0)',
            "-float('inf') → float('inf')", "where a NaN was the result is NaN",
        ),
        (
            "kernels/pooling.py", "forward_kernel", ANY, "2147483647 → 2147483646",
            "no sequence is so long",
        ),
        (
            "kernels/pooling.py", "backward_kernel", ANY,
            "tl.load(dout_at, mask=columns < D, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/pooling.py", "backward_kernel", ANY,
            "tl.load(dout_at + (D if MEAN else 0), mask=columns < D, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/pooling.py", "backward_kernel", ANY, "drop .to(tl.float32) of tl.load(*",
            "what it meets is float32",
        ),
        (
            "kernels/pooling.py", "backward_kernel", ANY,
            "tl.load(argmax_ptr + b * D + columns, mask=columns < D, other=-1): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/pooling.py", "backward_kernel", ANY,
            "drop .to(dx_ptr.dtype.element_ty) of *", "tl.store casts to what its pointer is of",
        ),
        (
            "reference/layer_norm.py", "backward", "d = dout.reshape(-1, C)  # (R, C)", "1 → 2",
            "NumPy takes any negative number for the unknown size",
        ),
        (
            "reference/layer_norm.py", "backward", "xhat = cache.h.reshape(-1, C) - cache.mean",
            "1 → 2", "NumPy takes any negative number for the unknown size",
        ),
        (
            "kernels/layer_norm.py", "forward_kernel", ANY,
            "drop .to(tl.float32) of tl.load(residual_ptr*", "what it meets is float32",
        ),
        (
            "kernels/layer_norm.py", "forward_kernel", ANY,
            "tl.load(weight_ptr + columns, mask=columns < C, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/layer_norm.py", "forward_kernel", ANY,
            "drop .to(tl.float32) of tl.load(weight_ptr*", "what it meets is float32",
        ),
        (
            "kernels/layer_norm.py", "forward_kernel", ANY,
            "tl.load(bias_ptr + columns, mask=columns < C, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/layer_norm.py", "forward_kernel", ANY,
            "drop .to(tl.float32) of tl.load(bias_ptr*", "what it meets is float32",
        ),
        (
            "kernels/layer_norm.py", "forward_kernel", ANY,
            "drop .to(y_ptr.dtype.element_ty) of y", "tl.store casts to what its pointer is of",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "drop .to(tl.float32) of tl.load(weight_ptr*", "what it meets is float32",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "drop .to(tl.float32) of tl.load(h_ptr*", "what it meets is float32",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "drop .to(tl.float32) of tl.load(dy_ptr*", "what it meets is float32",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "drop .to(tl.float32) of tl.load(dh_ptr*", "what it meets is float32",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "tl.load(h_ptr + at, mask=inside, other=0.0): drop other",
            "tl.where replaces what is outside",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "tl.load(mean_ptr + rows, mask=rows < last, other=0.0): drop other",
            "what is outside is replaced, or never stored",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "tl.load(rstd_ptr + rows, mask=rows < last, other=0.0): drop other",
            "what is outside is replaced, or never stored",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel",
            "xhat = tl.where(inside, (h - mean[:, None]) * rstd[:, None], 0.0)", "0.0 → 1.0",
            "its factor is 0 there",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "tl.load(dh_ptr + at, mask=inside, other=0.0): drop other",
            "what is outside is never stored",
        ),
        (
            "kernels/layer_norm.py", "backward_kernel", ANY,
            "drop .to(dx_ptr.dtype.element_ty) of *", "tl.store casts to what its pointer is of",
        ),
        (
            "kernels/layer_norm.py", "add_partials_kernel", ANY,
            "drop .to(dw_ptr.dtype.element_ty) of *", "tl.store casts to what its pointer is of",
        ),
        (
            "kernels/layer_norm.py", "add_partials_kernel", ANY,
            "drop .to(db_ptr.dtype.element_ty) of *", "tl.store casts to what its pointer is of",
        ),
    )
)  # fmt: skip


def reason(mutant: Mutant) -> str:
    """Return why a mutant is listed, "" if it is not."""
    return next((e.reason for e in EQUIVALENT if e.names(mutant)), "")


def stale(mutants: Iterable[Mutant]) -> list[Equivalent]:
    """Return the entries about the mutants' files that name none of them."""
    mutants = list(mutants)
    files = {m.file for m in mutants}
    return [e for e in EQUIVALENT if e.file in files and not any(e.names(m) for m in mutants)]
