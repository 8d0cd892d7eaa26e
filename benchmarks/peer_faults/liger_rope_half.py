"""Liger-Kernel's rotary embedding multiplies and adds in the dtype of its tables.

With float16 tables the products are rounded to float16, and where they cancel, that rounding error
is all that is left; in float32 they are exact, and the result is rounded once.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_rope  # noqa: E402

c, s, q1, q2 = np.array([0.6015625, 0.77978515625, 0.796875, 0.61474609375], np.float16)
q = torch.tensor([[[[q1, q2]]]], device=device)
cos, sin = (torch.tensor([[[x, x]]], device=device) for x in (c, s))
found = float(liger_rope(q, q.clone(), cos, sin)[0][0, 0, 0, 0])

exact = float(q1) * float(c) - float(q2) * float(s)
right = float(np.float16(exact))
print(f"the result is {found:.3g}; it must be {right:.3g}, the nearest to {exact:.3g}")
assert abs(found - exact) > 100 * exact  # with a fused multiply-add too
