"""FlagGems' layer norm: backward computes with lanes that were not loaded.

The loads of x, its gradient and the weight mask the lanes past the last row or column and give no
`other`, so the language leaves them undefined; gradients, alone and multiplied by weights, are
added up over them. The interpreter fills them with 0, as does the code that Triton generates for
NVIDIA; here they are filled with NaN, which is just as valid.
"""

import os

import torch

os.environ["TRITON_INTERPRET"] = "1"
from stand_ins.flag_gems_here import masked_lanes_are_nan  # noqa: E402

masked_lanes_are_nan()
from flag_gems.ops.layernorm import layer_norm, layer_norm_backward  # noqa: E402

x, weight, bias = torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(3), torch.zeros(3)
dout = torch.tensor([[1.0, 0.0, 0.0]])
_, mean, rstd = layer_norm(x, (3,), weight, bias)
every = (True, True, True)
found = layer_norm_backward(dout, x, (3,), mean, rstd, weight, bias, every)

xhat = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
dx = (dout - dout.mean() - xhat * (dout * xhat).mean()) * rstd
right = {"x": dx, "weight": xhat * dout, "bias": dout}
for (name, gradient), nan in zip(right.items(), found, strict=True):
    print(f"the gradient of {name} is {nan.tolist()}; it must be {gradient.tolist()}")
    assert nan.isnan().all()
