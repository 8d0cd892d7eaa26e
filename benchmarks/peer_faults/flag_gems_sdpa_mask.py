"""FlagGems' scaled_dot_product_attention takes a boolean mask for its opposite.

In torch's, whose signature it has, True means that a key takes part; here −10⁶ is added where it is
True. With one key left, the output must be that key's value.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.attention import scaled_dot_product_attention  # isort: skip

q = torch.zeros(1, 1, 1, 32, device=device)
k = torch.zeros(1, 1, 2, 32, device=device)
v = torch.tensor([1.0, 2.0], device=device).reshape(1, 1, 2, 1).expand(1, 1, 2, 32).contiguous()
mask = torch.tensor([[[[True, False]]]], device=device)
found = scaled_dot_product_attention(q, k, v, mask)[0, 0, 0, 0].item()

right = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)[0, 0, 0, 0].item()
print(f"the output is {found}; it must be {right}")
assert (found, right) == (2.0, 1.0)
