"""SGLang's Gemma RMSNorm computes row offsets in 32 bits, which overflow.

Past 2³¹ elements the product of row number and stride wraps around, and what lies in front of the
tensor is normalised. Three rows of a view, 2³⁰ elements apart, show it; memory that is never
touched costs nothing.
"""

import numpy as np
import torch
from stand_ins.sglang_here import device

from sglang.kernels.ops.layernorm.minimax_m3_rmsnorm import gemma_rmsnorm  # isort: skip

apart = 2**30
memory = torch.from_numpy(np.zeros(4 * apart + 2, np.float16)).to(device)
rows = memory[2 * apart :].as_strided((3, 2), (apart, 1))
rows.copy_(torch.tensor([[3.0, 4.0]] * 3))
first, _, last = gemma_rmsnorm(rows, torch.zeros(2, device=device), 0.0).tolist()
print(f"the last row is {last}; it must be {first}, as the first, which is the same")
assert first[0] > 0.8 and last != first
