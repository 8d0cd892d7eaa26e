"""FlagGems' embedding: backward takes the gradient to be contiguous, without checking.

Forward makes its inputs contiguous. The gradient of a sum, for example, is a single number expanded
to every position, and backward reads what stands behind it in memory.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.embedding import embedding_backward  # isort: skip

memory = torch.tensor([1.0, 5.0, 5.0, 5.0], device=device)
dout = memory[:1].expand(2, 2)  # as of a sum
ids = torch.tensor([0, 1], device=device)
found = embedding_backward(dout, ids, 2).tolist()

print(f"the gradient is {found}; it must be [[1.0, 1.0], [1.0, 1.0]]")
assert found == [[1.0, 5.0], [5.0, 5.0]]
