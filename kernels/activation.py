"""Activations and their derivatives: two small device functions, and one pass over memory for each.

Bytes: forward 2·n·b (read x, write y), backward 3·n·b (read dy and x, write dx); nothing else is
saved, since to compute f′(x) from x costs less than to load it. `linear` applies the same two
functions while its product is still in registers, and then they cost no bytes at all.

tanh is built from one exponential: z·½(1 + tanh a) = z/(1 + e⁻²ᵃ), tanh z = 1 − 2/(1 + e²ᶻ).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels.attention_parts import tanh
from twofold.reference.activation import CUBIC, LINEAR, SATURATED, check

BLOCK = 1024
SQRT_HALF = tl.constexpr(math.sqrt(0.5))
INVERSE_SQRT_2PI = tl.constexpr(1 / math.sqrt(2 * math.pi))
A1, A3 = tl.constexpr(LINEAR), tl.constexpr(CUBIC)  # a = A1·z + A3·z³
LIMIT = tl.constexpr(SATURATED)


class Cache(NamedTuple):
    """The input, and the activation."""

    x: torch.Tensor
    kind: str


class Gradients(NamedTuple):
    """Gradient of the input, shaped as the input."""

    dx: torch.Tensor


@triton.jit
def activate(z, KIND: tl.constexpr):
    """Return f(z) of a float32 tile."""
    if KIND == "gelu":
        return z * normal_cdf(z)
    elif KIND == "gelu_tanh":
        return z / (1.0 + tanh_decay(z))
    elif KIND == "tanh":
        return tanh(z)
    else:
        return tl.where(z < 0, 0.0, z)


@triton.jit
def activate_grad(z, KIND: tl.constexpr):
    """Return f′(z) of a float32 tile."""
    if KIND == "gelu":
        return normal_cdf(z) + z * (tl.exp(-0.5 * z * z) * INVERSE_SQRT_2PI)
    elif KIND == "gelu_tanh":
        # g + z·g′ with g = 1/(1 + e⁻²ᵃ), g′ = 2a′·e⁻²ᵃ·g²: not g(1 − g), where 1 − g would cancel
        decay = tanh_decay(z)
        gate = 1.0 / (1.0 + decay)
        z = tl.clamp(z, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        return gate * (1.0 + z * (2 * A1 + 6 * A3 * z * z) * gate * decay)
    elif KIND == "tanh":
        decay = tl.exp(-2.0 * tl.abs(z))
        gate = 1.0 / (1.0 + decay)
        return 4.0 * decay * gate * gate  # not 1 − tanh², which would cancel
    else:
        return tl.where(z > 0, 1.0, 0.0)


@triton.jit
def normal_cdf(z):
    """Return Φ(z)."""
    return 0.5 * (1.0 + tl.erf(z * SQRT_HALF))


@triton.jit
def tanh_decay(z):
    """Return e⁻²ᵃ; beyond ±LIMIT the activation no longer depends on it."""
    z = tl.clamp(z, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp(-z * (2 * A1 + 2 * A3 * z * z))


@triton.jit
def forward_kernel(
    x_ptr,  # (n,)
    y_ptr,  # (n,)
    n: tl.int64,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = f(x), for BLOCK elements."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index, mask=index < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + index, activate(x, KIND).to(y_ptr.dtype.element_ty), mask=index < n)


@triton.jit
def backward_kernel(
    dy_ptr,  # (n,)
    x_ptr,  # (n,)
    dx_ptr,  # (n,)
    n: tl.int64,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx = dy·f′(x), for BLOCK elements."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index, mask=index < n, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + index, mask=index < n, other=0.0).to(tl.float32)
    dx = dy * activate_grad(x, KIND)
    tl.store(dx_ptr + index, dx.to(dx_ptr.dtype.element_ty), mask=index < n)


def forward(x: torch.Tensor, kind: str = "gelu") -> tuple[torch.Tensor, Cache]:
    """Apply "gelu" (with erf), "gelu_tanh", "relu" or "tanh" element by element."""
    check(x, kind)
    x = x.contiguous()
    y = torch.empty_like(x)
    if n := x.numel():
        forward_kernel[(triton.cdiv(n, BLOCK),)](x, y, n, KIND=kind, BLOCK=BLOCK)
    return y, Cache(x, kind)


def backward(dout: torch.Tensor, cache: Cache) -> Gradients:
    """Return dx = dout·f′(x)."""
    dout = dout.contiguous()
    dx = torch.empty_like(dout)
    if n := dout.numel():
        backward_kernel[(triton.cdiv(n, BLOCK),)](
            dout, cache.x, dx, n, KIND=cache.kind, BLOCK=BLOCK
        )
    return Gradients(dx)
