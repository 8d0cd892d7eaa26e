"""FlagGems' layer norm of more than two axes: backward takes a whole batch entry for one row.

It stands in for torch's native_layer_norm_backward and is told which axes are normalised, yet takes
the first axis as rows and all others together as columns. With two rows in a batch of one, the
second is computed with the statistics of the first. With a weight, or more than one sequence, it
also reads and writes past the end of weight, statistics and gradients.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.layernorm import layer_norm, layer_norm_backward  # isort: skip

x = torch.tensor([[[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 1.0, 0.0]]], device=device)
dout = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]], device=device)
_, mean, rstd = layer_norm(x, (4,))
found, _, _ = layer_norm_backward(dout, x, (4,), mean, rstd, None, None, (True, False, False))

wide = x.double().requires_grad_()
torch.nn.functional.layer_norm(wide, (4,)).backward(dout.double())
print(f"the second row's gradient is {found[0, 1].tolist()}; it must be {wide.grad[0, 1].tolist()}")
assert (found - wide.grad).abs().max() > 0.1
