r"""A linear layer with an optional activation: y = f(x·Wᵀ + b).

`R` rows (all leading axes), `K` features in, `N` features out; the weight is (N, K), as torch has
it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import activation as activations
from twofold.reference import checks

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """What `backward` needs: `z`, the activation's input (of ReLU its output); what it `kept`."""

    x: Array
    weight: Array
    z: Array | None
    kept: Array | None
    activation: str | None
    has_bias: bool


class Gradients(NamedTuple):
    """Gradients of the arguments; `dbias` is None where there was no bias."""

    dx: Array
    dweight: Array
    dbias: Array | None


def check(x: Any, weight: Any, bias: Any, activation: str | None) -> None:
    """Raise TypeError or ValueError for what either side cannot take."""
    checks.array("x", x)
    checks.floating(x=x, weight=weight, bias=bias)
    checks.require(len(x.shape) >= 1, "x.shape", tuple(x.shape), "of rank 1 or more")
    checks.require(0 not in x.shape, "x.shape", tuple(x.shape), "without an empty dimension")
    checks.shape("weight", weight, ("N", int(x.shape[-1])))
    if bias is not None:
        checks.shape("bias", bias, (int(weight.shape[0]),))
    if activation is not None:
        checks.choice("activation", activation, activations.KINDS)


def forward(
    x: Array, weight: Array, bias: Array | None = None, activation: str | None = None
) -> tuple[Array, Cache]:
    """Multiply by the transposed weight, add the bias, apply the activation.

    Args:
        x: (..., K), floating.
        weight: (N, K).
        bias: (N,) or None.
        activation: None, "gelu", "gelu_tanh", "relu" or "tanh".

    Returns:
        out (..., N) and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x, weight, bias, activation)
    # (1) product and bias
    z = x.reshape(-1, x.shape[-1]) @ weight.T  # (R, N)
    if bias is not None:
        z += bias
    z = z.reshape(*x.shape[:-1], -1)
    # (2) activation
    if activation is None:
        return z, Cache(x, weight, None, None, None, bias is not None)
    out, kept = activations.activate(z, activation, spare=True)
    return out, Cache(x, weight, z, kept, activation, bias is not None)


def backward(dout: Array, cache: Cache, *, into: checks.Into = None) -> Gradients:
    """Return dz = dout·f′(z), then dx = dz·W, dW = dzᵀ·x and db = Σ dz over the rows.

    Args:
        dout: (..., N), of x's dtype.
        cache: from `forward`.
        into: (dweight, dbias), arrays (N, K) and (N,) that are written instead of new ones; None
            for a new one, and for the gradient of a bias that there is none of.

    Returns:
        dx (..., K), dweight (N, K), and dbias (N,) or None.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.floating(x=cache.x, dout=dout)
    checks.shape("dout", dout, (*cache.x.shape[:-1], len(cache.weight)))
    N, K = cache.weight.shape
    dweight, dbias = checks.into(into, dweight=(N, K), dbias=(N,) if cache.has_bias else None)
    dz = dout
    # (2) activation
    if cache.z is not None and cache.activation is not None:
        dz = activations.slope(cache.z, cache.kept, cache.activation)
        dz *= dout
    # (1) product and bias
    dz = dz.reshape(-1, dz.shape[-1])  # (R, N)
    x = cache.x.reshape(-1, cache.x.shape[-1])  # (R, K)
    dx = (dz @ cache.weight).reshape(cache.x.shape)
    dweight = np.matmul(dz.T, x, out=dweight)
    return Gradients(dx, dweight, dz.sum(axis=0, out=dbias) if cache.has_bias else None)
