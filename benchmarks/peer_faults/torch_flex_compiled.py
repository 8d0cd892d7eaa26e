"""PyTorch's FlexAttention, compiled for a CPU, generates C++ that its compiler rejects.

This needs a mask that reads a tensor, and dynamic sizes, which torch.compile chooses by itself at
the second size.
"""

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

compiled = torch.compile(flex_attention, dynamic=True)
M, N, D = 5, 6, 16
q, k, v = (torch.ones(1, 1, n, D) for n in (M, N, N))
mask = torch.ones(M, N, dtype=torch.bool)
block_mask = create_block_mask(lambda b, h, i, j: mask[i, j], 1, 1, M, N, device="cpu")
right = np.ones((1, 1, M, D))  # every key is attended, and every value is 1
try:
    assert not np.allclose(compiled(q, k, v, block_mask=block_mask), right)
except torch._inductor.exc.InductorError as error:
    said = next(line for line in str(error).splitlines() if "error: " in line)
    print(f"it raises '{said.split('error: ')[1]}'; it must be {right[0, 0, 0, 0]} everywhere")
