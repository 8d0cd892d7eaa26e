"""SGLang's rotation by three positions multiplies and adds in the dtype of its table.

Its server casts the table to the dtype of the queries. In float16 the products are rounded to
float16, and where they cancel, that rounding error is all that is left; in float32 they are exact,
and the result is rounded once.
"""

import numpy as np
import torch
from stand_ins.sglang_here import device

from sglang.kernels.ops.attention.rotary_triton import triton_mrope_fused  # isort: skip

c, s, q1, q2 = np.array([0.6015625, 0.77978515625, 0.796875, 0.61474609375], np.float16)
q, table = (torch.tensor([x], device=device) for x in ((q1, q2), (c, s)))
positions = torch.zeros(3, 1, dtype=torch.int64, device=device)
triton_mrope_fused(q, q.clone(), table, positions, [1, 0, 0], 2, 2, False, False, True, None)
found = float(q[0, 0])

exact = float(q1) * float(c) - float(q2) * float(s)
right = float(np.float16(exact))
print(f"the result is {found:.3g}; it must be {right:.3g}, the nearest to {exact:.3g}")
assert abs(found - exact) > 100 * exact  # with a fused multiply-add too
