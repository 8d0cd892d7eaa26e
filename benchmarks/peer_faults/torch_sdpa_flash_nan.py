"""PyTorch's flash attention on a CPU loses a NaN: a query that holds one gets the output 0.

Its scores are all NaN, and so is the output of PyTorch's other implementation; a run that has
diverged, and should stop there, goes on with zeros.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

q, k, v = (torch.ones(1, 1, 1, 8) for _ in range(3))
q[..., 0] = float("nan")
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
    found = float(torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, 0, 0, 0])
with sdpa_kernel(SDPBackend.MATH):
    right = float(torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, 0, 0, 0])

print(f"the output is {found}; it must be {right}")
assert found == 0.0 and right != right
