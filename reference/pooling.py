r"""From a sequence to one vector: first position, mean, maximum, or mean beside maximum.

Padding (positions at or after a sequence's length) never counts. The gradient of a maximum goes to
the first position that attains it.

`B` batch, `L` length, `D` features. The steps are numbered; the kernel carries the same numbers
where it does the same thing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("first", "mean", "max", "mean_max")


class Cache(NamedTuple):
    """What `backward` needs; `top` is None where no maximum is taken."""

    x: Array
    lengths: Array
    top: Array | None  # (B, D)
    kind: str


class Gradients(NamedTuple):
    """Gradient of the sequence, (B, L, D)."""

    dx: Array


def check(x: Any, lengths: Any, kind: str) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.floating(x=x)
    checks.integer(lengths=lengths)
    checks.shape("x", x, ("B", "L", "D"))
    checks.shape("lengths", lengths, (int(x.shape[0]),))
    checks.same_device(x=x, lengths=lengths)
    checks.choice("kind", kind, KINDS)


def forward(x: Array, lengths: Array, kind: str = "mean") -> tuple[Array, Cache]:
    """Pool every sequence over its own positions.

    Args:
        x: (B, L, D), floating.
        lengths: (B,), int32 or int64, each at least 1 and at most L.
        kind: "first", "mean", "max" or "mean_max" (D features of the mean, then D of the maximum).

    Returns:
        out (B, D), for "mean_max" (B, 2D), and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be; only the
            reference refuses a length out of range (the kernel, which cannot check, gives NaN).
    """
    check(x, lengths, kind)
    B, L, D = x.shape
    checks.sequence_lengths(lengths, L, "x.shape[1]")
    if kind == "first":
        return x[:, 0].copy(), Cache(x, lengths, None, kind)
    # (1) the positions that count
    live = np.arange(L) < lengths[:, None]  # (B, L)
    parts, top = [], None
    # (2) mean
    if kind in ("mean", "mean_max"):
        total = np.einsum("bld->bd", widened(filled_padding(live, x, 0)))
        parts.append(rounded(total / lengths[:, None].astype(total.dtype), x.dtype))
    # (3) maximum
    if kind in ("max", "mean_max"):
        top = filled_padding(live, x, -np.inf).max(axis=1)  # (B, D)
        parts.append(top)
    return np.concatenate(parts, axis=1), Cache(x, lengths, top, kind)


def filled_padding(live: Array, x: Array, rest: float) -> Array:
    """Return x with `rest` in the padding, even where the padding is not finite."""
    if live.all():
        return x
    x = x.copy()
    x[~live] = rest
    return x


def backward(dout: Array, cache: Cache) -> Gradients:
    """Spread the mean's gradient over its positions; give the maximum's to where it was attained.

    Args:
        dout: (B, D), for "mean_max" (B, 2D), floating.
        cache: from `forward`.

    Returns:
        dx (B, L, D), of the dtype of dout, 0 in the padding.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    x = cache.x
    B, L, D = x.shape
    checks.gradient("dout", dout, (B, 2 * D if cache.kind == "mean_max" else D))
    dtype, dout = dout.dtype, widened(dout)
    dx = np.zeros(x.shape, dout.dtype)
    if cache.kind == "first":
        dx[:, 0] = dout
        return Gradients(rounded(dx, dtype))
    # (2) mean, of (1) the positions that count
    if cache.kind in ("mean", "mean_max"):
        live = (np.arange(L) < cache.lengths[:, None])[..., None]  # (B, L, 1)
        share = (1 / cache.lengths[:, None, None]).astype(dout.dtype)
        np.multiply(dout[:, None, :D], share, out=dx, where=live)
    # (3) maximum
    if cache.top is not None:
        # A NaN counts as the largest. Padding comes after the position that attains the maximum.
        first = ((x == cache.top[:, None]) | (x != x)).argmax(axis=1)  # (B, D)
        dx[np.arange(B)[:, None], first, np.arange(D)] += dout[:, -D:]
    return Gradients(rounded(dx, dtype))
