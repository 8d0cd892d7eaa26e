"""Activations and their derivatives: two small device functions, and one pass over memory for each.

Bytes: forward 2·n·b (read x, write out), backward 3·n·b (read dout and x, write dx); nothing else
is saved, since computing f′(x) from x costs less than loading it. `linear` applies the same two
functions while its product is still in registers; there they cost no bytes at all.

A bias is added in registers, both ways: z is neither written nor rounded. The kernels with a bias
go by rows and columns. Backward also sums dbias: partial sums over shares of the rows, which a
small second kernel adds up: no atomics, the same bits in every run. There are as many shares as
fill a GPU; their sums, written and read, are about 2 MB. `linear` uses the same pass for its own
bias.

tanh takes one exponential: z·½(1 + tanh a) = z/(1 + e⁻²ᵃ), tanh z = 1 − 2/(1 + e²ᶻ); so do σ(z)
and its derivative, from e⁻|ᶻ|. Steps (1) and (2) are those of the reference.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from twofold.kernels import precision
from twofold.kernels.attention_parts import tanh
from twofold.reference import activation, checks
from twofold.reference.activation import check

BLOCK = 1024
BLOCK_R, BLOCK_C = 16, 128  # the tile of the kernels with a bias
STAGES = 3  # backward loads two tiles ahead, so that few programs keep memory busy
ENOUGH_PROGRAMS = 2048  # a large GPU runs about half of them at a time
SQRT_HALF = tl.constexpr(math.sqrt(0.5))
INVERSE_SQRT_2PI = tl.constexpr(1 / math.sqrt(2 * math.pi))
# a = LINEAR·z + CUBIC·z³
LINEAR, CUBIC = tl.constexpr(activation.LINEAR), tl.constexpr(activation.CUBIC)
SATURATED = tl.constexpr(activation.SATURATED)


class Cache(NamedTuple):
    """The input, the activation, and the bias."""

    x: torch.Tensor
    kind: str
    bias: torch.Tensor | None


class Gradients(NamedTuple):
    """Gradients of the arguments; `dbias` is None where there was no bias."""

    dx: torch.Tensor
    dbias: torch.Tensor | None


@triton.jit
def activate(z, KIND: tl.constexpr):
    """Return f(z) of a float32 tile."""
    if KIND == "gelu":
        return z * normal_cdf(z)
    elif KIND == "gelu_tanh":
        return tl.maximum(z, -SATURATED) / (1.0 + tanh_decay(z))
    elif KIND == "tanh":
        return tanh(z)
    elif KIND == "silu":
        share, _ = sigmoid(z)
        return z * share
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
        z = tl.clamp(z, -SATURATED, SATURATED, propagate_nan=tl.PropagateNan.ALL)
        return gate * (1.0 + z * (2 * LINEAR + 6 * CUBIC * z * z) * gate * decay)
    elif KIND == "tanh":
        decay = tl.exp(-2.0 * tl.abs(z))
        gate = 1.0 / (1.0 + decay)
        return 4.0 * decay * gate * gate  # not 1 − tanh², which would cancel
    elif KIND == "silu":
        share, density = sigmoid(z)
        return share + z * density
    else:
        return tl.where(z > 0, 1.0, 0.0)


@triton.jit
def normal_cdf(z):
    """Return Φ(z)."""
    return 0.5 * (1.0 + tl.erf(z * SQRT_HALF))


@triton.jit
def sigmoid(z):
    """Return σ(z) and σ′(z), computed from e⁻|ᶻ|, which cannot overflow."""
    decay = tl.exp(-tl.abs(z))
    near = 1.0 / (1.0 + decay)
    far = decay * near  # not 1 − near, which would cancel
    return tl.where(z < 0, far, near), near * far


@triton.jit
def tanh_decay(z):
    """Return e⁻²ᵃ with z clamped to ±SATURATED, beyond which gelu_tanh is 0 or z to 1e-37."""
    z = tl.clamp(z, -SATURATED, SATURATED, propagate_nan=tl.PropagateNan.ALL)
    return tl.exp(-z * (2 * LINEAR + 2 * CUBIC * z * z))


@triton.jit
def forward_kernel(
    x_ptr,  # (n,)
    out_ptr,  # (n,)
    n: tl.int64,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(2) out = f(x), for BLOCK elements, without a bias."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index, mask=index < n, other=0.0).to(tl.float32)
    tl.store(out_ptr + index, activate(x, KIND).to(out_ptr.dtype.element_ty), mask=index < n)


@triton.jit
def backward_kernel(
    dout_ptr,  # (n,)
    x_ptr,  # (n,)
    dx_ptr,  # (n,)
    n: tl.int64,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(2) dx = dout·f′(x), for BLOCK elements, without a bias."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index, mask=index < n, other=0.0).to(tl.float32)
    dout = tl.load(dout_ptr + index, mask=index < n, other=0.0).to(tl.float32)
    dx = dout * activate_grad(x, KIND)
    tl.store(dx_ptr + index, dx.to(dx_ptr.dtype.element_ty), mask=index < n)


@triton.jit
def load_bias(bias_ptr, bias_strides, columns, C):
    """Return the bias of columns, as a row of float32."""
    bias = tl.load(bias_ptr + columns * bias_strides[0], mask=columns < C, other=0.0)
    return bias.to(tl.float32)[None, :]


@triton.jit
def bias_forward_kernel(
    x_ptr,  # (R, C)
    bias_ptr,  # (C,)
    out_ptr,  # (R, C)
    bias_strides,
    R: tl.int64,
    C,
    KIND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = f(x + bias), for a tile of BLOCK_R rows and BLOCK_C columns."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = rows[:, None] * C + columns[None, :]
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    # (1) bias
    z = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    z += load_bias(bias_ptr, bias_strides, columns, C)
    # (2) activation
    tl.store(out_ptr + at, activate(z, KIND).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def bias_backward_kernel(
    dout_ptr,  # (R, C)
    x_ptr,  # (R, C) if KIND is an activation
    bias_ptr,  # (C,) if HAS_BIAS
    dx_ptr,  # (R, C) if KIND is an activation
    partial_dbias_ptr,  # (shares, C) float32 if SUMS
    dout_strides,
    bias_strides,
    R: tl.int64,
    C,
    rows_per_share: tl.int64,
    KIND: tl.constexpr,  # the activation, or "none"
    HAS_BIAS: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dx = dout·f′(x + bias) of a share of the rows, BLOCK_C columns; its sum over those rows."""
    share = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    dbias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    first = share * rows_per_share
    last = tl.minimum(first + rows_per_share, R)
    for start in tl.range(first, last, BLOCK_R, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows[:, None] < last) & (columns[None, :] < C)
        dout_at = dout_ptr + rows[:, None] * dout_strides[0] + columns[None, :] * dout_strides[1]
        dx = tl.load(dout_at, mask=inside, other=0.0).to(tl.float32)
        # (2) activation
        if KIND != "none":
            at = rows[:, None] * C + columns[None, :]
            z = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if HAS_BIAS:
                z += load_bias(bias_ptr, bias_strides, columns, C)
            dx *= activate_grad(z, KIND)
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        # (1) bias
        dbias += dx
    if SUMS:
        at = share * C + columns
        tl.store(partial_dbias_ptr + at, tl.sum(dbias, axis=0), mask=columns < C)


@triton.jit
def add_partials_kernel(
    partial_dbias_ptr,  # (shares, C) float32
    dbias_ptr,  # (C,)
    dbias_strides,
    shares,
    C,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the partial sums of BLOCK_C columns."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    dbias = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for start in range(0, shares, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        at = s[:, None].to(tl.int64) * C + columns[None, :]
        inside = (s[:, None] < shares) & (columns[None, :] < C)
        dbias += tl.load(partial_dbias_ptr + at, mask=inside, other=0.0)
    total = tl.sum(dbias, axis=0).to(dbias_ptr.dtype.element_ty)
    tl.store(dbias_ptr + columns * dbias_strides[0], total, mask=columns < C)


def forward(
    x: torch.Tensor, kind: str = "gelu", bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, Cache]:
    """Add the bias, if there is one, and apply an activation element by element.

    Arguments and results are those of `reference.activation.forward`.
    """
    check(x, kind, bias)
    precision.supported("x", x)
    x = x.contiguous()
    out, n = torch.empty_like(x), x.numel()
    if n and bias is None:
        forward_kernel[(triton.cdiv(n, BLOCK),)](x, out, n, KIND=kind, BLOCK=BLOCK)
    elif n and bias is not None:
        C = x.shape[-1]
        bias_forward_kernel[(triton.cdiv(n // C, BLOCK_R), triton.cdiv(C, BLOCK_C))](
            x, bias, out, bias.stride(), n // C, C, KIND=kind, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C
        )
    return out, Cache(x, kind, bias)


def backward(dout: torch.Tensor, cache: Cache, *, split: int | None = None) -> Gradients:
    """Return dx = dout·f′(x + bias) and, with a bias, dbias = Σ dx over the rows.

    Arguments and results are those of `reference.activation.backward`. `split` overrides the number
    of shares of the rows that are summed separately.
    """
    precision.gradient("dout", dout, cache.x)
    if split is not None:
        checks.count("split", split, 1)
    x, dx, n = cache.x, torch.empty_like(cache.x), dout.numel()
    if cache.bias is None:
        if n:
            backward_kernel[(triton.cdiv(n, BLOCK),)](
                dout.contiguous(), x, dx, n, KIND=cache.kind, BLOCK=BLOCK
            )
        return Gradients(dx, None)
    dbias = torch.zeros_like(cache.bias)
    if n:
        C = x.shape[-1]
        split = split or triton.cdiv(ENOUGH_PROGRAMS, triton.cdiv(C, BLOCK_C))
        dout, x, dz = dout.reshape(-1, C), x.view(-1, C), dx.view(-1, C)
        differentiate(dout, x, dz, cache.kind, cache.bias, dbias, split)
    return Gradients(dx, dbias)


def differentiate(
    dout: torch.Tensor,
    x: torch.Tensor | None,
    dx: torch.Tensor,
    kind: str | None,
    bias: torch.Tensor | None,
    dbias: torch.Tensor | None,
    split: int,
) -> None:
    """Write dx = dout·f′(x + bias), if there is an activation f, and its sum over the rows.

    All but bias and dbias are (R, C), x and dx contiguous; the rows are summed in at most `split`
    shares.
    """
    R, C = dout.shape
    rows_per_share = triton.cdiv(R, split * BLOCK_R) * BLOCK_R
    shares = triton.cdiv(R, rows_per_share)
    partials = torch.empty((shares, C), dtype=torch.float32, device=dout.device)
    bias_backward_kernel[(shares, triton.cdiv(C, BLOCK_C))](
        dout, dout if x is None else x, dout if bias is None else bias, dx, partials,
        dout.stride(), (0,) if bias is None else bias.stride(),
        R, C, rows_per_share,
        KIND=kind or "none",
        HAS_BIAS=bias is not None,
        SUMS=dbias is not None,
        BLOCK_R=BLOCK_R,
        BLOCK_C=BLOCK_C,
        STAGES=STAGES,
        num_warps=8,  # with 4, tanh's derivative in float16 spills
    )  # fmt: skip
    if dbias is not None:
        add_partials_kernel[(triton.cdiv(C, BLOCK_C),)](
            partials, dbias, dbias.stride(), shares, C, BLOCK_S=32, BLOCK_C=BLOCK_C
        )
