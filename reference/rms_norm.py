r"""Root mean square layer normalisation, fused with the residual add that precedes it.

    h = residual + x
    out = h / √(mean(h²) + ε) · (w + offset),    the mean over the last axis

Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4, with ε added. There
is no mean to subtract, and no bias. Models like Llama have this norm before each sublayer: h is
their residual stream, out the input of the sublayer. Gemma stores its weight minus 1, so its offset
is 1; for the others it is 0.

`R` rows (all leading axes), `C` columns (the normalised axis).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.layer_norm import dots
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """The residual stream `h` (as x), which pre-norm models read, and what `backward` needs."""

    h: Array
    rstd: Array  # (R, 1)
    weight: Array
    offset: float
    has_residual: bool


class Gradients(NamedTuple):
    """Gradients of the arguments; `dresidual` is None where there was no residual, else `dx`."""

    dx: Array
    dresidual: Array | None
    dweight: Array


def check(x: Any, weight: Any, residual: Any, eps: float, offset: float) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("x", x)
    checks.floating(x=x, weight=weight, residual=residual)
    checks.rows("x", x)
    checks.shape("weight", weight, (int(x.shape[-1]),))
    if residual is not None:
        checks.shape("residual", residual, tuple(x.shape))
    checks.positive("eps", eps)
    checks.number("offset", offset)
    checks.require(math.isfinite(offset), "offset", offset, "finite")


def forward(
    x: Array,
    weight: Array,
    *,
    residual: Array | None = None,
    eps: float = 1e-6,
    offset: float = 0.0,
) -> tuple[Array, Cache]:
    """Add x to the residual and divide the sum by its root mean square over the last axis.

    Args:
        x: (..., C), floating.
        weight: (C,), of x's dtype, without the offset; the factor after normalising.
        residual: (..., C), of x's dtype, or None: the stream to which x is added.
        eps: added to the mean square, inside the root.
        offset: added to the weight; 1.0 for Gemma's weights.

    Returns:
        out (..., C) and a cache whose `h` (..., C) is residual + x.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x, weight, residual, eps, offset)
    # (1) h, the residual stream; used as it is stored, so that backward sees the same numbers
    h = x if residual is None else residual + x
    rows = widened(h).reshape(-1, h.shape[-1])  # (R, C)
    # (2) mean of the squares
    mean_square = dots(rows, rows) / rows.shape[1]  # (R, 1)
    rstd = 1.0 / np.sqrt(mean_square + float(eps))
    # (3) out = ĥ·(w + offset), ĥ = h·rstd
    out = rows * rstd
    out *= widened(weight) + float(offset)
    cache = Cache(h, rstd, weight, float(offset), residual is not None)
    return rounded(out.reshape(h.shape), x.dtype), cache


def backward(
    dout: Array,
    cache: Cache,
    dh: Array | None = None,
    *,
    into: checks.Into = None,
) -> Gradients:
    """Return the gradients of x, residual and weight.

    With ĥ = h·rstd and g = dout·(w + offset):  dh = rstd·(g − ĥ·mean(g·ĥ)), because rstd depends on
    every element of the row.

    Args:
        dout: gradient of out, (..., C), of x's dtype.
        cache: from `forward`.
        dh: gradient of the residual stream `cache.h`, (..., C), of x's dtype, or None.
        into: (dweight,), an array (C,) to write to instead of a new one; None for a new one.

    Returns:
        dx and dresidual (..., C), the same array, the latter None without a residual; dweight (C,).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.gradient("dout", dout, cache.h.shape, cache.h.dtype)
    if dh is not None:
        checks.gradient("dh", dh, cache.h.shape, cache.h.dtype)
    C = dout.shape[-1]
    (dweight,) = checks.into(into, dweight=(C,))
    d = widened(dout).reshape(-1, C)  # (R, C)
    # (4) ĥ again, (R, C), from the residual stream
    normed = widened(cache.h).reshape(-1, C) * cache.rstd
    # (5) weight: a sum over the rows
    dweight = rounded(np.einsum("rc,rc->c", d, normed), dout.dtype, dweight)
    # (6) the residual stream: project out what the root mean square took away
    g = d * (widened(cache.weight) + cache.offset)
    along = dots(g, normed) / C  # (R, 1)
    normed *= along
    g -= normed
    g *= cache.rstd
    total = g.reshape(dout.shape)
    if dh is not None:
        total += dh
    dx = rounded(total, dout.dtype)
    return Gradients(dx, dx if cache.has_residual else None, dweight)
