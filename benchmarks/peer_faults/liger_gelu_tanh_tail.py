"""Liger-Kernel's tanh GEGLU loses all precision in the left tail of the gate.

0.5·x·(1 + tanh u) cancels where tanh u is near −1: at x = −6 nothing is left of it, nor of its
gradient. x/(1 + exp(−2u)) is the same number, and loses nothing.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
import triton.language as tl  # noqa: E402
from triton.language.extra import libdevice  # noqa: E402

if device == "cpu":  # the interpreter has no libdevice
    libdevice.tanh = lambda u: 2 * tl.sigmoid(2 * u) - 1
from liger_kernel.ops import LigerGELUMulFunction  # noqa: E402

x = -6.0
found = float(
    LigerGELUMulFunction.apply(torch.tensor([[x]], device=device), torch.ones(1, 1).to(device))
)
u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
right = x / (1 + np.exp(-2 * u))
print(f"the result is {found}; it must be {right}")
assert abs(found - right) > 0.01 * abs(right)
