"""FlagGems' softmax: backward computes with lanes that were not loaded.

The loads of the output and of its gradient mask the lanes past the end of the row and give no
`other`, so the language leaves them undefined; their product is added to the row's sum. The
interpreter fills them with 0, as does the code that Triton generates for NVIDIA; here they are
filled with NaN, which is just as valid.
"""

import os

import torch

os.environ["TRITON_INTERPRET"] = "1"
from stand_ins.flag_gems_here import masked_lanes_are_nan  # noqa: E402

masked_lanes_are_nan()
from flag_gems.ops.softmax import softmax_backward  # noqa: E402

out, dout = torch.tensor([[0.25, 0.25, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
found = softmax_backward(dout, out, -1, torch.float32)

right = out * (dout - (out * dout).sum())
print(f"the gradient is {found.tolist()}; it must be {right.tolist()}")
assert found.isnan().all()
