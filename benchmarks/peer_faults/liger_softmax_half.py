"""Liger-Kernel's softmax multiplies and adds in the dtype of its input in backward.

For two equal logits both weights are exactly ½, and so their products with the gradients 1 and 1 +
2⁻¹⁰ are exact too. Their sum in float16 is 1 instead of 1 + 2⁻¹¹, and nothing is left when it is
subtracted from 1.
"""

import os

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.ops.softmax import LigerSoftmaxFunction  # noqa: E402

x = torch.zeros(1, 2, dtype=torch.float16, device=device, requires_grad=True)
dout = torch.tensor([[1.0, 1.0 + 2.0**-10]], dtype=torch.float16, device=device)
LigerSoftmaxFunction.apply(x).backward(dout)

right = 0.5 * (1.0 - (0.5 * 1.0 + 0.5 * (1.0 + 2.0**-10)))
print(f"the gradient is {x.grad[0, 0].item()}; it must be {right}")
assert x.grad[0, 0].item() == 0.0
