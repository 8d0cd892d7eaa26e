r"""SwiGLU, GEGLU and ReGLU: one half of a projection, activated, is the gate of the other half.

    out = f(gate)·up

Shazeer 2020, "GLU Variants Improve Transformer", equations 5 and 6, without the projections, which
are `linear`'s: SwiGLU with f = silu, GEGLU with gelu, ReGLU with relu. Differentiated,

    dup = dout·f(gate),   dgate = dout·up·f′(gate)

Only gate and up are kept for backward, and f is recomputed. Here that saves the memory of another
array; in the kernel it saves time too, as reading f would take longer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from twofold.reference import activation, checks
from twofold.reference.precision import rounded, widened

Array = np.ndarray[Any, np.dtype[Any]]


class Cache(NamedTuple):
    """Both inputs, and the activation."""

    gate: Array
    up: Array
    kind: str


class Gradients(NamedTuple):
    """Gradients of gate and up, with their shapes."""

    dgate: Array
    dup: Array


def check(gate: Any, up: Any, kind: str) -> None:
    """Raise TypeError or ValueError for arguments that either side cannot take."""
    checks.array("gate", gate)
    checks.floating(gate=gate, up=up)
    checks.require(len(gate.shape) >= 1, "gate.shape", tuple(gate.shape), "of rank 1 or more")
    checks.shape("up", up, tuple(int(n) for n in gate.shape))
    checks.choice("kind", kind, activation.KINDS)


def forward(gate: Array, up: Array, kind: str = "silu") -> tuple[Array, Cache]:
    """Activate the gate and multiply by it, element by element.

    Args:
        gate: (..., C), floating; may be empty.
        up: shaped as gate, of its dtype.
        kind: "silu", "gelu" (with erf), "gelu_tanh", "relu" or "tanh".

    Returns:
        out, shaped as gate, and the cache.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check(gate, up, kind)
    # (1) activation
    f, _ = activation.activate(widened(gate), kind)
    # (2) product
    return rounded(f * up, gate.dtype), Cache(gate, up, kind)


def backward(dout: Array, cache: Cache, *, into: checks.Into = None) -> Gradients:
    """Return dgate = dout·up·f′(gate) and dup = dout·f(gate).

    Args:
        dout: shaped as gate, of its dtype.
        cache: from `forward`.
        into: (dgate, dup), arrays shaped as gate to write to instead of new ones, such as the
            halves of a packed gradient, or gate and up themselves; None for a new one.

    Returns:
        dgate and dup, shaped as gate.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    gate, up, kind = cache
    checks.gradient("dout", dout, gate.shape, gate.dtype)
    to = checks.into(into, dgate=gate.shape, dup=gate.shape)
    z, d = widened(gate), widened(dout)
    f, kept = activation.activate(z, kind)
    # (2) product
    dup, df = d * f, d * up
    # (1) activation
    dgate = df * activation.activate_grad(z, kept, kind)
    return Gradients(*(rounded(x, gate.dtype, a) for x, a in zip((dgate, dup), to, strict=True)))
