"""Liger-Kernel's rotary embedding rotates the gradient that it is given in place.

That gradient is not its own: in a sum, the other summand is given the same tensor, and gets it
rotated. It happens in every memory layout that is contiguous once axes 1 and 2 are swapped.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_rope  # noqa: E402

q, residual = (torch.zeros(1, 1, 1, 2, device=device, requires_grad=True) for _ in range(2))
cos, sin = torch.zeros(1, 1, 2, device=device), torch.ones(1, 1, 2, device=device)  # 90 degrees
other = 1.0 * residual
turned, _ = liger_rope(q.clone(), q.detach().clone(), cos, sin)
(turned + other).backward(torch.tensor([[[[1.0, 2.0]]]], device=device))

right = np.array([1.0, 2.0])  # d(turned + residual) / d residual
found = residual.grad.cpu().numpy().ravel()
print(f"the residual's gradient is {found.tolist()}; it must be {right.tolist()}")
assert np.array_equal(found, [2.0, -1.0])
