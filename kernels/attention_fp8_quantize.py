"""Quantisation to FP8 (e4m3) with a scale per head, for attention.

Bytes: x is read twice, once for the largest magnitude per head and once to be cast; x8 is written
once.

`B` batch, `H` heads, `L` length, `D` head_dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from twofold.kernels.attention_fp8_tiles import padded
from twofold.kernels.attention_parts import at, load, place
from twofold.kernels.layout import with_32bit_offsets
from twofold.kernels.precision import supported
from twofold.reference.attention_fp8 import LARGEST, LEAST_SCALE, check_quantize

E4M3 = torch.float8_e4m3fn
ROWS = 32  # of a program
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # all bits of a float32 but the sign


@triton.jit
def largest_kernel(
    x_ptr,  # (B, H, L, D)
    largest_ptr,  # (B, H, blocks) float32
    strides, H, L,
    D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Find the largest magnitude of BLOCK_L rows, or NaN if there is one."""
    blocks = tl.cdiv(L, BLOCK_L)
    block, b, h = place(tl.program_id(0), blocks, H)
    rows, d = tl.arange(0, BLOCK_L)[:, None], tl.arange(0, BLOCK_D)[None, :]
    x = load(x_ptr, strides, b, h, block * BLOCK_L, rows, d, L, D).to(tl.float32)
    # Magnitudes compare as their bits do, with NaN above ∞; a maximum of floats would drop NaN.
    largest = tl.max(x.to(tl.int32, bitcast=True) & MAGNITUDE).to(tl.float32, bitcast=True)
    tl.store(largest_ptr + (b * H + h) * blocks + block, largest)


@triton.jit
def cast_kernel(
    x_ptr,  # (B, H, L, D)
    scale_ptr,  # (B, H) float32
    out_ptr,  # (B, H, L, D) e4m3
    strides, out_strides, H, L,
    D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Divide BLOCK_L rows by the scale of their head and round them."""
    block, b, h = place(tl.program_id(0), tl.cdiv(L, BLOCK_L), H)
    rows, d = tl.arange(0, BLOCK_L)[:, None], tl.arange(0, BLOCK_D)[None, :]
    start = block * BLOCK_L
    x = load(x_ptr, strides, b, h, start, rows, d, L, D).to(tl.float32)
    x8 = (x / tl.load(scale_ptr + b * H + h)).to(out_ptr.dtype.element_ty)
    tl.store(at(out_ptr, out_strides, b, h, start, rows, d), x8, (start + rows < L) & (d < D))


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return e4m3 numbers and their scales, (B, H) float32: x ≈ x8·scale.

    Arguments and results are those of `reference.attention_fp8.quantize`, x in float16, bfloat16 or
    float32, any strides; x8 is float8_e4m3fn, laid out in memory as x is if x has no gaps.
    """
    check_quantize(x)
    supported("x", x)
    x = with_32bit_offsets(x)
    B, H, L, D = x.shape
    blocks = triton.cdiv(L, ROWS)
    largest = torch.empty((B, H, blocks), dtype=torch.float32, device=x.device)
    constants = {"D": D, "BLOCK_L": ROWS, "BLOCK_D": padded(D), "num_warps": 4}
    largest_kernel[(blocks * B * H,)](x, largest, x.stride(), H, L, **constants)
    scale = (largest.amax(-1) / LARGEST).clamp(min=LEAST_SCALE)
    x8 = torch.empty_like(x, dtype=E4M3)
    cast_kernel[(blocks * B * H,)](x, scale, x8, x.stride(), x8.stride(), H, L, **constants)
    return x8, scale
