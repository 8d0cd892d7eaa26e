"""FlagGems' embedding adds up the gradients of one row in float16, where that is their dtype.

(In bfloat16, it adds up in float32.) The 1s that come after 2048 are lost.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.embedding import embedding_backward  # isort: skip

dout = torch.tensor([[2048.0], [1.0], [1.0]], dtype=torch.float16, device=device)
ids = torch.zeros(3, dtype=torch.int64, device=device)
found = embedding_backward(dout, ids, 1).item()

print(f"the gradient is {found}; it must be 2050.0")
assert found == 2048.0
