r"""A linear layer with an optional activation: y = f(x·Wᵀ + b).

`R` rows (all leading axes), `K` features in, `N` features out; the weight is (N, K), as in torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import activation as activations
from twofold.reference import checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """What `backward` needs: `z`, the activation's input (ReLU's output); what it `kept`.

    Both are None without an activation, and if forward was told not to keep them.
    """

    x: Array
    weight: Array
    z: Array | None
    kept: Array | None
    activation: str | None
    has_bias: bool


class Gradients(NamedTuple):
    """Gradients of the arguments; None for those not computed, and for `dbias` without a bias."""

    dx: Array | None
    dweight: Array | None
    dbias: Array | None


def check(x: Any, weight: Any, bias: Any, activation: str | None) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("x", x)
    checks.floating(x=x, weight=weight, bias=bias)
    checks.rows("x", x)
    checks.shape("weight", weight, ("N", int(x.shape[-1])))
    if bias is not None:
        checks.shape("bias", bias, (int(weight.shape[0]),))
    if activation is not None:
        checks.choice("activation", activation, activations.KINDS)


def forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    activation: str | None = None,
    *,
    keep: bool = True,
) -> tuple[Array, Cache]:
    """Multiply by the transposed weight, add the bias, apply the activation.

    Args:
        x: (..., K), floating.
        weight: (N, K), of x's dtype.
        bias: (N,), of x's dtype, or None.
        activation: None, "gelu", "gelu_tanh", "relu", "tanh" or "silu".
        keep: whether z is kept; without it there is no backward through an activation.

    Returns:
        out (..., N) and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(x, weight, bias, activation)
    checks.flag("keep", keep)
    # (1) product and bias
    z = widened(x).reshape(-1, x.shape[-1]) @ widened(weight).T  # (R, N)
    if bias is not None:
        z += bias
    z = z.reshape(*x.shape[:-1], -1)
    # (2) activation
    if activation is None:
        return rounded(z, x.dtype), Cache(x, weight, None, None, None, bias is not None)
    out, kept = activations.activate(z, activation, spare=True)
    result = rounded(out, x.dtype)
    if not keep:
        return result, Cache(x, weight, None, None, activation, bias is not None)
    return result, Cache(x, weight, z, kept, activation, bias is not None)


def backward(
    dout: Array,
    cache: Cache,
    *,
    of_x: bool = True,
    of_weight: bool = True,
    of_bias: bool = True,
    into: checks.Into = None,
) -> Gradients:
    """Return dz = dout·f′(z), then dx = dz·W, dW = dzᵀ·x and db = Σ dz over the rows.

    Args:
        dout: (..., N), of x's dtype.
        cache: from `forward`.
        of_x, of_weight: whether dx and dweight are computed, a product each.
        of_bias: whether dbias is computed, if there is a bias.
        into: (dweight, dbias), arrays (N, K) and (N,) to write to instead of new ones; None for a
            new one, and for a gradient that is not computed.

    Returns:
        dx (..., K), dweight (N, K) and dbias (N,), None for those that are not computed.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    checks.flags(of_x=of_x, of_weight=of_weight, of_bias=of_bias)
    checks.floating(x=cache.x, dout=dout)
    checks.shape("dout", dout, (*cache.x.shape[:-1], len(cache.weight)))
    N, K = cache.weight.shape
    of_bias = of_bias and cache.has_bias
    dweight, dbias = checks.into(
        into, dweight=(N, K) if of_weight else None, dbias=(N,) if of_bias else None
    )
    dz = widened(dout)
    # (2) activation
    if cache.activation is not None:
        z = widened(checks.kept("cache.z", cache.z))
        dz = activations.activate_grad(z, cache.kept, cache.activation)
        dz *= dout
    # (1) product and bias
    dz = dz.reshape(-1, dz.shape[-1])  # (R, N)
    x, dtype = widened(cache.x).reshape(-1, cache.x.shape[-1]), dout.dtype  # (R, K)
    return Gradients(
        rounded((dz @ widened(cache.weight)).reshape(cache.x.shape), dtype) if of_x else None,
        rounded(np.matmul(dz.T, x, out=dweight), dtype, dweight) if of_weight else None,
        rounded(dz.sum(axis=0), dtype, dbias) if of_bias else None,
    )
