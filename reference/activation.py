r"""Activations of the feed-forward layer: GELU, its tanh form, and ReLU.

    gelu(z)      = z·Φ(z),  Φ(z) = ½(1 + erf(z/√2))
    gelu_tanh(z) = ½z·(1 + tanh(√(2/π)·(z + 0.044715·z³)))
    relu(z)      = max(z, 0)

Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2; Nair & Hinton 2010 for ReLU. The
derivative of ReLU at 0 is taken as 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from twofold.reference import checks
from twofold.reference.erf import erf

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("gelu", "gelu_tanh", "relu")
CUBIC = 0.044715


class Cache(NamedTuple):
    """The input, and which activation it went through."""

    x: Array
    kind: str


class Gradients(NamedTuple):
    """Gradient of the input, shaped as the input."""

    dx: Array


def check(x: Any, kind: str) -> None:
    """Refuse what either side cannot take."""
    checks.floating(x=x)
    checks.choice("kind", kind, KINDS)


def forward(x: Array, kind: str = "gelu") -> tuple[Array, Cache]:
    """Apply an activation element by element.

    Args:
        x: any shape, floating.
        kind: "gelu" (with erf), "gelu_tanh" or "relu".

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x, kind)
    return activate(x, kind), Cache(x, kind)


def backward(dout: Array, cache: Cache) -> Gradients:
    """Return dx = dout·f′(x)."""
    return Gradients(dout * slope(cache.x, cache.kind))


def activate(z: Array, kind: str) -> Array:
    """Return f(z)."""
    if kind == "relu":
        return np.maximum(z, 0)
    gate = _normal_cdf(z) if kind == "gelu" else _tanh_gate(z)
    return np.multiply(gate, z, out=gate)


def slope(z: Array, kind: str) -> Array:
    """Return f′(z)."""
    if kind == "relu":
        return (z > 0).astype(z.dtype)
    if kind == "gelu":
        # Φ(z) + z·φ(z), φ the normal density
        density = np.exp(-0.5 * np.square(z)) / math.sqrt(2 * math.pi)
        return np.asarray(_normal_cdf(z) + z * density, z.dtype)
    # With g = ½(1 + tanh a): g + z·g′, and g′ = 2g(1 − g)·a′
    gate = _tanh_gate(z)
    inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * CUBIC * np.square(z))
    return np.asarray(gate + z * (2 * gate * (1 - gate)) * inner_slope, z.dtype)


def _normal_cdf(z: Array) -> Array:
    cdf = erf(z * z.dtype.type(math.sqrt(0.5)))
    cdf += 1
    cdf *= 0.5
    return cdf


def _tanh_gate(z: Array) -> Array:
    inner = np.square(z)
    inner *= CUBIC
    inner += 1
    inner *= z
    inner *= math.sqrt(2 / math.pi)
    gate = np.tanh(inner, out=inner)
    gate += 1
    gate *= 0.5
    return gate
