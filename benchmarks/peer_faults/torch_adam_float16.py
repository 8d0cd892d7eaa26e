"""PyTorch's Adam on float16 parameters divides by 0 where the gradient is small.

Its second moment, g², and eps, 1e-8, are float16 too, and both round to 0. The fused Adam computes
in float32 and does not do this.
"""

import numpy as np
import torch

g, lr, eps = 2.0**-13, 1e-3, 1e-8
p = torch.ones(1, dtype=torch.float16, requires_grad=True)
p.grad = torch.full_like(p, g)
torch.optim.Adam([p], lr=lr, eps=eps, foreach=False).step()

right = np.float16(1.0 - lr * g / (np.sqrt(g * g) + eps))  # step 1: moments are g and g²
print(f"the parameter is {p.item()}; it must be {right}")
assert not np.isfinite(p.item())
