"""FlagGems' scaled_dot_product_attention always returns the gradients of a causal call.

Its backward is told whether the call was causal and does not look. Where the first of several
queries should attend every key, backward lets it attend the first key alone, so its part in the
gradients of the other keys' values is missing.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.attention import scaled_dot_product_attention  # isort: skip

length = 128  # whole blocks, as it asks for
q, k = torch.zeros(2, 1, 1, length, 32, device=device)
v = torch.zeros(1, 1, length, 32, device=device, requires_grad=True)
dout = torch.zeros_like(v)
dout[0, 0, 0] = length  # of the first query alone
scaled_dot_product_attention(q, k, v).backward(dout)

print(f"the second value's gradient is {v.grad[0, 0, 1, 0].item()}; it must be 1.0")
assert v.grad[0, 0, 1, 0].item() == 0.0
