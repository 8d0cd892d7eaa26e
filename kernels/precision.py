"""The dtypes that kernels take, and how they multiply matrices in float32."""

from __future__ import annotations

from typing import Any

import torch

from twofold.kernels.device import architecture, bare_interpreter
from twofold.reference import checks

DTYPES = ("float16", "bfloat16", "float32")
INTERPRETED = (
    "float16 or float32 in Triton's own interpreter, whose bfloat16 is wrong; that of "
    "twofold.core.verify.strict has it"
)


def supported(name: str, x: Any) -> None:
    """Raise `ValueError` unless kernels take x's dtype and x is where they are launched.

    Only NumPy's side takes float64, and Triton's bare interpreter no bfloat16. Triton launches on
    the current device, wherever the tensors are.
    """
    checks.choice(f"{name}.dtype", checks.dtype_name(x), DTYPES)
    if x.dtype == torch.bfloat16 and not x.is_cuda and bare_interpreter():
        checks.require(False, f"{name}.dtype", "bfloat16", INTERPRETED)
    on_current_device(name, x)


def gradient(name: str, x: Any, output: Any) -> None:
    """Raise unless x can be an output's gradient: its shape, dtype and device, the current one."""
    checks.gradient(name, x, tuple(output.shape), output.dtype)
    checks.same_device(output=output, **{name: x})
    on_current_device(name, x)


def on_current_device(name: str, x: Any) -> None:
    """Raise `ValueError` unless x is where kernels are launched, if it is on a GPU."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        here = f"the current device, cuda:{torch.cuda.current_device()} (see torch.cuda.device)"
        checks.require(False, f"{name}.device", x.device, here)


def float32_products(allow_tf32: bool) -> str:
    """Return Triton's `input_precision`; products of float16 and bfloat16 ignore it.

    Three tf32 products are accurate to float32; one, where the caller allows it, to 10 bits. AMD's
    matrix unit has true float32, and Triton no tf32x3 for it.
    """
    checks.flag("allow_tf32", allow_tf32)
    if architecture().startswith("gfx"):
        return "ieee"
    return "tf32" if allow_tf32 else "tf32x3"
