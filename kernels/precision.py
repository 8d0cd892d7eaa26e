"""How matrix products of float32 are taken, the same choice for every kernel that has one."""

from __future__ import annotations

from twofold.kernels.device import architecture


def float32_products(allow_tf32: bool) -> str:
    """Return Triton's `input_precision`; products of float16 and bfloat16 do not look at it.

    Three tf32 products are accurate to float32; one, where the caller allows it, to 10 bits. AMD's
    matrix unit has true float32, and Triton no tf32x3 for it.
    """
    if architecture().startswith("gfx"):
        return "ieee"
    return "tf32" if allow_tf32 else "tf32x3"
