"""FlagGems' scaled_dot_product_attention: backward reads past the last row of the gradient.

The loads of the gradient's rows have no mask. What is read past the end is multiplied by 0, and a
NaN stays NaN: here NaN stands behind the gradient of the only query.
"""

import math

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.attention import scaled_dot_product_attention  # isort: skip

memory = torch.full((257, 32), math.nan, device=device)
memory[0] = 1.0
q, k = torch.zeros(2, 1, 1, 1, 32, device=device)
v = torch.zeros(1, 1, 1, 32, device=device, requires_grad=True)
scaled_dot_product_attention(q, k, v, is_causal=True).backward(memory[:1].reshape(1, 1, 1, 32))

print(f"the value's gradient is {v.grad[0, 0, 0, 0].item()}; it must be 1.0")
assert v.grad.isnan().all()
