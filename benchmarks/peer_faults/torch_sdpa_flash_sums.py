"""PyTorch's flash attention on a CPU adds up dk and dv in their own dtype, 32 queries at a time.

Three blocks of queries contribute 512, 1 and −512 to dv: in bfloat16, which has no 513, the 1 is
lost. Added up in float32 and rounded once at the end, dv is exact.
"""

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

parts = np.repeat([16.0, 1 / 32, -16.0], 32)  # of dv, one for each query
q = torch.zeros(1, 1, 96, 8, dtype=torch.bfloat16)
k = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16)
v = torch.ones(1, 1, 1, 8, dtype=torch.bfloat16, requires_grad=True)
dout = torch.tensor(parts, dtype=torch.bfloat16).reshape(1, 1, 96, 1).expand_as(q)
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
out.backward(dout)  # every query attends the one key with weight 1

found, right = float(v.grad[0, 0, 0, 0]), parts.sum()
print(f"dv is {found}; it must be {right}")
assert found == 0.0 and right == 1.0
