"""FlagGems' scaled_dot_product_attention addresses the heads of values by the strides of keys.

Where values are laid out differently from keys, all heads but the first are read from the wrong
place; here the second head's values come from the first head's second position.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.attention import scaled_dot_product_attention  # isort: skip

q = torch.zeros(1, 2, 1, 32, device=device)
k = torch.zeros(1, 1, 2, 32, device=device).expand(1, 2, 2, 32).contiguous()
heads = torch.tensor([[1.0, 3.0], [5.0, 7.0]], device=device)  # of each position
values = heads.reshape(1, 2, 2, 1).expand(1, 2, 2, 32).contiguous()
# more memory behind it, for what is read beyond
v = torch.cat((values, values), dim=1)[:, :2].transpose(1, 2)
found = scaled_dot_product_attention(q, k, v)[0, :, 0, 0].tolist()

right = torch.nn.functional.scaled_dot_product_attention(q, k, v)[0, :, 0, 0].tolist()
print(f"the outputs of both heads are {found}; they must be {right}")
assert right == [3.0, 5.0] and found != right
