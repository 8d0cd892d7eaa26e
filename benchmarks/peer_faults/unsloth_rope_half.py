"""Unsloth's rotary embedding multiplies in the dtype of its tables.

With float16 tables, x₂·sin is rounded to float16 before the fused multiply-add that subtracts it
from x₁·cos, and where the two cancel, that rounding error is all that is left; in float32 the
products are exact, and the result is rounded once.
"""

import numpy as np
import torch
from stand_ins import unsloth_kernels

rope = unsloth_kernels.load("rope_embedding")

c, s, q1, q2 = np.array([0.6015625, 0.77978515625, 0.796875, 0.61474609375], np.float16)
q = torch.tensor([[[[q1, q2]]]], device=unsloth_kernels.DEVICE)
cos, sin = (torch.tensor([[x, x]], device=unsloth_kernels.DEVICE) for x in (c, s))
found = float(rope.fast_rope_embedding(q, q.clone(), cos, sin)[0][0, 0, 0, 0])

exact = float(q1) * float(c) - float(q2) * float(s)
right = float(np.float16(exact))
print(f"the result is {found:.3g}; it must be {right:.3g}, the nearest to {exact:.3g}")
assert abs(found - exact) > 10 * abs(exact)
