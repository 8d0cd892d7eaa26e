"""Liger-Kernel's GEGLU and SwiGLU give another gradient in a second backward of one graph.

Backward overwrites gate and up, which forward saved, with their gradients, without telling
autograd; a second backward takes these for gate and up. Shown for GEGLU, whose kernels run in
Triton's interpreter.
"""

import os

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
import triton.language as tl  # noqa: E402
from triton.language.extra import libdevice  # noqa: E402

if device == "cpu":  # the interpreter has no libdevice
    libdevice.tanh = lambda u: 2 * tl.sigmoid(2 * u) - 1
from liger_kernel.ops import LigerGELUMulFunction  # noqa: E402

gate, up = (torch.tensor([[x]], device=device, requires_grad=True) for x in (1.0, 2.0))
out = LigerGELUMulFunction.apply(gate.clone(), up.clone())
first, second = (
    torch.autograd.grad(out, gate, torch.ones_like(out), retain_graph=True)[0].item()
    for _ in range(2)
)
print(f"the gate's gradients are {first:.4f} and {second:.4f}; they must be the same")
assert abs(first - second) > 0.1
