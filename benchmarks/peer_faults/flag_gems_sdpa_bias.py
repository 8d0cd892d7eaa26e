"""FlagGems' scaled_dot_product_attention adds a float mask to logits in base 2.

Where it is not causal, the scaled products are multiplied by log₂ e before the mask is added, but
the mask is not. For two keys that differ only in the mask, by log 3, the weights must be ¾ and ¼.
"""

import math

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.attention import scaled_dot_product_attention  # isort: skip

q = torch.zeros(1, 1, 1, 32, device=device)
k = torch.zeros(1, 1, 2, 32, device=device)
v = torch.tensor([1.0, 0.0], device=device).reshape(1, 1, 2, 1).expand(1, 1, 2, 32).contiguous()
mask = torch.tensor([[[[math.log(3.0), 0.0]]]], device=device)
found = scaled_dot_product_attention(q, k, v, mask)[0, 0, 0, 0].item()

in_base_2 = 2 ** math.log(3.0) / (2 ** math.log(3.0) + 1)
print(f"the output is {found}; it must be 0.75")
assert math.isclose(found, in_base_2, rel_tol=1e-6)
