r"""Attention over disjoint sets of keys, merged into attention over all of them.

    lse = log Σ_s exp(lse_s),   w_s = exp(lse_s − lse),   out = Σ_s w_s·out_s

where out_s = Σ_j exp(s_j − lse_s)·v_j over the keys of part s, so that exp(lse_s)·out_s adds up
over parts as over keys: the online softmax of Milakov & Gimelshein 2018, "Online normalizer
calculation for softmax", applied to parts as in FlashAttention-2 (Dao 2023, section 3.1) and
Flash-Decoding (Dao, Haziza, Massa & Sizov 2023).

The gradient. ∂lse/∂lse_s = w_s and ∂w_t/∂lse_s = w_t·(δ_st − w_s), hence
∂out/∂lse_s = w_s·out_s − w_s·Σ_t w_t·out_t = w_s·(out_s − out). A loss with gradients dout and dlse
then has

    dout_s = w_s·dout,   dlse_s = w_s·(dout·(out_s − out) + dlse),

whose sums over the parts are dout and dlse.

`S` parts, `B` batch, `H` heads, `M` queries, `D` head_dim. The steps are numbered; the kernel
carries the same numbers where it does the same thing.

A part that attended to nothing has lse −∞: it is left out, whatever its output holds, even NaN, and
has gradient 0. A query for which all parts are like that has output 0, lse −∞ and gradient 0. An
lse of NaN or +∞ is the log-sum-exp of nothing: it makes its query's output and lse NaN.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """What `backward` needs; `lse` and the weights `w` are also there for inspection."""

    outs: Array  # (S, B, H, M, D), 0 where a part is left out
    out: Array  # in float32 for float16
    out_dtype: Any  # of out as it is returned
    lse: Array  # (B, H, M)
    w: Array  # (S, B, H, M)


class Gradients(NamedTuple):
    """Gradients of outs and lses, with their shapes."""

    douts: Array
    dlses: Array


def check(outs: Any, lses: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(outs=outs)
    checks.shape("outs", outs, ("S", "B", "H", "M", "D"))
    S, B, H, M, D = (int(n) for n in outs.shape)
    checks.head_dim("outs", D)
    checks.dtype("lses", lses, statistics_dtype(outs))
    checks.shape("lses", lses, (S, B, H, M))
    checks.same_device(outs=outs, lses=lses)


def check_backward(dout: Any, dlse: Any, out: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(out=out, dout=dout)
    shape = tuple(int(n) for n in out.shape)
    checks.shape("dout", dout, shape)
    if dlse is not None:
        checks.dtype("dlse", dlse, statistics_dtype(out))
        checks.shape("dlse", dlse, shape[:3])
    checks.same_device(out=out, dlse=dlse)


def statistics_dtype(x: Any) -> str:
    """Return the dtype of the log-sum-exp beside an array x: float32, or float64 beside float64."""
    return "float64" if checks.dtype_name(x) == "float64" else "float32"


def forward(outs: Array, lses: Array, *, out_dtype: Any = None) -> tuple[Array, Cache]:
    """Merge the outputs of attention over disjoint sets of keys by their log-sum-exp.

    Args:
        outs: (S, B, H, M, D), floating, S ≥ 1, D ≤ 512: the parts' outputs.
        lses: (S, B, H, M), natural logarithms, float32 (float64 where outs are): the parts'
            log-sum-exp, −inf where a query attended to nothing in a part.
        out_dtype: the result's dtype or its name; by default that of outs.

    Returns:
        out (B, H, M, D) and a cache whose `lse` (B, H, M) is that of all keys.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(outs, lses)
    asked = outs.dtype if out_dtype is None else out_dtype
    dtype = checks.numpy_dtype("out_dtype", asked)
    # (1) log-sum-exp, against the largest lse so that exp cannot overflow
    top = lses.max(axis=0)  # (B, H, M)
    top[top == -np.inf] = 0
    w = np.exp(lses - top)  # (S, B, H, M)
    total = sum(w)  # (B, H, M)
    with np.errstate(divide="ignore"):  # log 0 = −∞ where all parts are left out
        lse = top + np.log(total)
    # (2) weights
    total[total == 0] = 1
    w /= total
    # (3) output; a part left out may hold anything, and 0·NaN is NaN
    outs = np.where((lses == -np.inf)[..., None], 0, outs)
    out = sum(w[..., None] * outs)  # (B, H, M, D)
    return rounded(out, dtype), Cache(outs, out, dtype, lse, w)


def backward(dout: Array, cache: Cache, dlse: Array | None = None) -> Gradients:
    """Return the gradients of outs and lses; equations and source are at the top.

    Args:
        dout: gradient of out, (B, H, M, D), of its dtype.
        cache: from `forward`.
        dlse: gradient of `cache.lse`, (B, H, M) and of its dtype, or None.

    Returns:
        douts (S, B, H, M, D) and dlses (S, B, H, M).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    # (4) weights and output again: kept here, computed again by the kernel
    outs, out, out_dtype, _, w = cache
    check_backward(dout, dlse, rounded(out, out_dtype))
    # (5) gradients of the outputs
    douts = (w[..., None] * dout).astype(outs.dtype)  # (S, B, H, M, D)
    # (6) gradients of the log-sum-exps
    dlses = np.einsum("bhmd,sbhmd->sbhm", widened(dout), outs - out)  # (S, B, H, M)
    if dlse is not None:
        dlses = dlses + dlse
    return Gradients(douts, w * dlses)
