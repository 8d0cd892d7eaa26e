r"""Layer normalisation, fused with the residual add and dropout that precede it.

    h = residual + dropout(x)
    out = (h − μ) / √(σ² + ε) · w + b,    μ, σ² the mean and variance of h over the last axis

Ba, Kiros & Hinton 2016, "Layer Normalization", section 3. A pre-norm Transformer needs both
results: h is its residual stream, out the input of the next sublayer. A post-norm one needs only
out.

`R` rows (all leading axes), `C` columns (the normalised axis).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks, dropout
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """The residual stream `h` (as x), which pre-norm models read, and what `backward` needs."""

    h: Array
    mean: Array  # (R, 1)
    rstd: Array  # (R, 1)
    weight: Array
    has_residual: bool
    scaled_mask: Array | None  # dropout's; the kernel draws it again instead


class Gradients(NamedTuple):
    """Gradients of the arguments; `dresidual` is None where there was no residual.

    Without dropout it is the same array as `dx`.
    """

    dx: Array
    dresidual: Array | None
    dweight: Array
    dbias: Array


def check(
    x: Any, weight: Any, bias: Any, residual: Any, dropout_p: float, seed: Any, eps: float
) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("x", x)
    checks.floating(x=x, weight=weight, bias=bias, residual=residual)
    checks.rows("x", x)
    checks.shape("weight", weight, (int(x.shape[-1]),))
    checks.shape("bias", bias, (int(x.shape[-1]),))
    if residual is not None:
        checks.shape("residual", residual, tuple(x.shape))
    checks.probability("dropout_p", dropout_p)
    checks.seed(seed, x)
    checks.positive("eps", eps)


def forward(
    x: Array,
    weight: Array,
    bias: Array,
    *,
    residual: Array | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    eps: float = 1e-5,
) -> tuple[Array, Cache]:
    """Add dropout(x) to the residual and normalise the sum over its last axis.

    Args:
        x: (..., C), floating.
        weight, bias: (C,), of x's dtype; multiply and add to the normalised h.
        residual: (..., C), of x's dtype, or None: the stream to which x is added.
        dropout_p: probability of dropping an element of x.
        seed: determines the dropout mask: a number, or a 0-d int64 array that holds it.
        eps: added to the variance, inside the root.

    Returns:
        out (..., C) and a cache whose `h` (..., C) is residual + dropout(x).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x, weight, bias, residual, dropout_p, seed, eps)
    # (1) h, the residual stream; used as it is stored, so that backward sees the same numbers
    h, scaled_mask = widened(x), None
    if dropout_p > 0.0:
        scaled_mask = dropout.scaled_mask(h.shape, dropout_p, seed, h.dtype)
        h = h * scaled_mask
    if residual is not None:
        h = residual + h
    h = rounded(h, x.dtype)
    rows = widened(h).reshape(-1, h.shape[-1])  # (R, C)
    # (2) mean, and the variance about it (in two passes: E[h²] − E[h]² would cancel)
    mean = means(rows)  # (R, 1)
    centred = rows - mean  # (R, C)
    variance = dots(centred, centred) / rows.shape[1]  # (R, 1)
    rstd = 1.0 / np.sqrt(variance + np.asarray(eps, variance.dtype))
    # (3) out = x̂·w + b, x̂ = (h − μ)·rstd
    centred *= rstd
    centred *= weight
    centred += bias
    cache = Cache(h, mean, rstd, weight, residual is not None, scaled_mask)
    return rounded(centred.reshape(h.shape), x.dtype), cache


def backward(
    dout: Array,
    cache: Cache,
    dh: Array | None = None,
    *,
    into: checks.Into = None,
) -> Gradients:
    """Return the gradients of x, residual, weight and bias.

    With x̂ = (h − μ)·rstd and g = dout·w:  dh = rstd·(g − mean(g) − x̂·mean(g·x̂)), because μ and σ
    depend on every element of the row.

    Args:
        dout: gradient of out, (..., C), of x's dtype.
        cache: from `forward`.
        dh: gradient of the residual stream `cache.h`, (..., C), of x's dtype, or None.
        into: (dweight, dbias), arrays (C,) to write to instead of new ones; each may be None.

    Returns:
        dx and dresidual (..., C), the latter None without a residual; dweight and dbias (C,).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.gradient("dout", dout, cache.h.shape, cache.h.dtype)
    if dh is not None:
        checks.gradient("dh", dh, cache.h.shape, cache.h.dtype)
    C = dout.shape[-1]
    dweight, dbias = checks.into(into, dweight=(C,), dbias=(C,))
    d = widened(dout).reshape(-1, C)  # (R, C)
    # (4) x̂ again, from the residual stream
    xhat = widened(cache.h).reshape(-1, C) - cache.mean
    xhat *= cache.rstd  # (R, C)
    # (5) weight and bias: sums over the rows
    dweight = rounded(np.einsum("rc,rc->c", d, xhat), dout.dtype, dweight)
    dbias = rounded(d.sum(axis=0), dout.dtype, dbias)
    # (6) the residual stream: project out what the mean and the variance took away
    g = d * cache.weight  # (R, C)
    along_mean = means(g)  # (R, 1)
    along_xhat = dots(g, xhat) / C
    xhat *= along_xhat
    g -= along_mean
    g -= xhat
    g *= cache.rstd
    total = g.reshape(dout.shape)
    if dh is not None:
        total += dh
    # (7) both branches of the sum
    dx = dresidual = rounded(total, dout.dtype)
    if cache.scaled_mask is not None:
        dx = rounded(total * cache.scaled_mask, dout.dtype)
    return Gradients(dx, dresidual if cache.has_residual else None, dweight, dbias)


def means(x: Array) -> Array:
    """Return the mean of each row, (R, 1); einsum sums rows in a quarter of `mean`'s time."""
    return np.asarray(np.einsum("rc->r", x)[:, None] / x.shape[1])


def dots(x: Array, y: Array) -> Array:
    """Return the dot product of each row of x and of y, (R, 1)."""
    return np.asarray(np.vecdot(x, y)[:, None])
