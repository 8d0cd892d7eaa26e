"""FlagGems' layer norm saves the mean and 1/std for backward in the input's dtype.

A comment beside it says that they are in single precision. In float16, for rows far from 0, the
rounded mean is off by a sizeable share of the deviation.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.layernorm import layer_norm, layer_norm_backward  # isort: skip

x = torch.tensor([[1000.0, 1000.5, 1000.5, 1000.5]], dtype=torch.float16, device=device)
dout = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float16, device=device)
weight, bias = torch.ones(4).to(x), torch.zeros(4).to(x)
_, mean, rstd = layer_norm(x, (4,), weight, bias)
found, *_ = layer_norm_backward(dout, x, (4,), mean, rstd, weight, bias, (True, False, False))

wide = x.double().requires_grad_()
torch.nn.functional.layer_norm(wide, (4,)).backward(dout.double())
print(f"the gradient is {found[0, 1].item()}; it must be {wide.grad[0, 1].item()}")
assert (found - wide.grad).abs().max() > 0.1
