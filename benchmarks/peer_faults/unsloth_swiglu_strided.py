"""Unsloth's SwiGLU and GEGLUs read a gate that is not contiguous as if it were.

Gate and up are not contiguous where they lie side by side in one tensor, as a joint projection
gives them: what is read as the second gate is then the first up.
"""

import numpy as np
import torch
from stand_ins import unsloth_kernels

swiglu = unsloth_kernels.load("swiglu")

both = torch.tensor([[[1.0, 10.0], [2.0, 20.0]]], device=unsloth_kernels.DEVICE)
gate, up = both.chunk(2, -1)
found = swiglu.swiglu_fg_kernel(gate, up).flatten().tolist()

x, y = (t.flatten().cpu().numpy() for t in (gate, up))
right = x / (1 + np.exp(-x)) * y
print(f"the results are {found}; they must be {right.tolist()}")
assert abs(found[1] - right[1]) > 1
