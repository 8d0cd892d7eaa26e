r"""Activations: GELU, its tanh form, ReLU and SiLU for the feed-forward, tanh for BERT's pooler.

    gelu(z)      = z·Φ(z),  Φ the normal CDF, ½(1 + erf(z/√2))
    gelu_tanh(z) = ½z·(1 + tanh a) = z/(1 + e⁻²ᵃ),  a = √(2/π)·(z + 0.044715·z³)
    relu(z)      = max(z, 0)
    tanh(z)      = 1 − 2/(1 + e²ᶻ),  tanh′(z) = 4e⁻²|ᶻ|/(1 + e⁻²|ᶻ|)²
    silu(z)      = z·σ(z) = z/(1 + e⁻ᶻ),  silu′(z) = σ(z) + z·σ′(z),  σ′(z) = σ(z)·σ(−z)

with z = x, or z = x + bias if a bias over the last axis is given.

Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2; for ReLU Nair & Hinton 2010 (its
derivative at 0 is taken to be 0); for SiLU Elfwing, Uchibe & Doya 2017, "Sigmoid-Weighted Linear
Units", equations 2 and 5, called swish by Ramachandran, Zoph & Le 2017. Forward keeps the
transcendental part, Φ(z), e⁻²ᵃ, e⁻²|ᶻ| or e⁻|ᶻ|, for backward.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks, normal
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("gelu", "gelu_tanh", "relu", "tanh", "silu")
LINEAR, CUBIC = math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi)  # a = LINEAR·z + CUBIC·z³
SATURATED = 10.0  # beyond ±10, gelu_tanh is 0 or z to 1e-37


class Cache(NamedTuple):
    """z, what `activate` kept for `activate_grad`, the kind, whether there is a bias, x's dtype."""

    z: Array
    kept: Array | None
    kind: str
    has_bias: bool
    dtype: Any


class Gradients(NamedTuple):
    """Gradients of the arguments; `dbias` is None where there was no bias."""

    dx: Array
    dbias: Array | None


def check(x: Any, kind: str, bias: Any) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("x", x)
    checks.floating(x=x, bias=bias)
    checks.choice("kind", kind, KINDS)
    if bias is not None:
        checks.require(len(x.shape) >= 1, "x.shape", tuple(x.shape), "of rank 1 or more, as bias")
        checks.shape("bias", bias, (int(x.shape[-1]),))


def forward(x: Array, kind: str = "gelu", bias: Array | None = None) -> tuple[Array, Cache]:
    """Add the bias, if there is one, and apply an activation element by element.

    Args:
        x: any shape, (..., C) with a bias; floating.
        kind: "gelu" (with erf), "gelu_tanh", "relu", "tanh" or "silu".
        bias: (C,), of x's dtype, or None.

    Returns:
        out, shaped as x, and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x, kind, bias)
    # (1) bias
    z = widened(x)
    if bias is not None:
        z = z + bias
    # (2) activation
    out, kept = activate(z, kind)
    return rounded(out, x.dtype), Cache(z, kept, kind, bias is not None, x.dtype)


def backward(dout: Array, cache: Cache) -> Gradients:
    """Return dx = dout·f′(x + bias) and, with a bias, dbias = Σ dx over the rows.

    Args:
        dout: shaped as x, of its dtype.
        cache: from `forward`.

    Returns:
        dx, shaped as x, and dbias (C,), None where there was no bias.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.gradient("dout", dout, cache.z.shape, cache.dtype)
    # (2) activation
    dx = activate_grad(cache.z, cache.kept, cache.kind)
    dx *= dout
    # (1) bias
    dbias = None
    if cache.has_bias:
        rows = tuple(range(dx.ndim - 1))
        dbias = rounded(dx.sum(axis=rows), dout.dtype)
    return Gradients(rounded(dx, dout.dtype), dbias)


def activate(z: Array, kind: str, spare: bool = False) -> tuple[Array, Array | None]:
    """Return f(z), and what `activate_grad` needs: Φ(z), e⁻²ᵃ, e⁻²|ᶻ|, e⁻|ᶻ|; None for ReLU.

    ReLU, whose slope follows from its output too, overwrites a `spare` z; clip takes a third of
    the time of maximum, and keeps NaN as well.
    """
    if kind == "relu":
        return np.clip(z, 0, np.inf, out=z if spare else None), None
    if kind == "gelu":
        cdf = normal.cdf(z)
        return z * cdf, cdf
    if kind == "tanh":
        return np.tanh(z), np.exp(-2 * np.abs(z))
    if kind == "silu":
        decay = np.exp(-np.abs(z))
        return z * _sigmoid(z, decay), decay
    decay = _tanh_decay(z)
    return np.maximum(z, -SATURATED) / (1 + decay), decay


def activate_grad(z: Array, kept: Array | None, kind: str) -> Array:
    """Return f′(z), as a new array."""
    if kept is None:
        return (z > 0).astype(z.dtype)
    if kind == "gelu":
        # Φ + z·φ
        result: Array = normal.density(z)
        result *= z
        result += kept
        return result
    if kind == "tanh":
        # not 1 − tanh², which would cancel
        return np.asarray(4 * kept / np.square(1 + kept))
    if kind == "silu":
        return np.asarray(_sigmoid(z, kept) + z * (kept / np.square(1 + kept)))
    # g + z·g′ with g = 1/(1 + e⁻²ᵃ), g′ = 2a′·e⁻²ᵃ·g²: not g(1 − g), where 1 − g would cancel
    gate = np.reciprocal(1 + kept)
    z = np.clip(z, -SATURATED, SATURATED)
    result = np.square(z)
    result *= 6 * CUBIC
    result += 2 * LINEAR
    result *= z
    result *= gate
    result *= kept
    result += 1
    result *= gate
    return result


def _sigmoid(z: Array, decay: Array) -> Array:
    """Return σ(z) = exp(min(z, 0))/(1 + e⁻|ᶻ|), which neither overflows nor cancels."""
    share: Array = np.exp(np.minimum(z, 0))
    share /= 1 + decay
    return share


def _tanh_decay(z: Array) -> Array:
    """Return e⁻²ᵃ."""
    z = np.clip(z, -SATURATED, SATURATED)
    decay = np.square(z)
    decay *= -2 * CUBIC
    decay -= 2 * LINEAR
    decay *= z
    return np.asarray(np.exp(decay))
