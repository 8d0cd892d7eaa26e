"""FlagGems' gelu_and_mul: backward multiplies the gradient by up in their dtype.

In float16, 300 times 300 is ∞, although the gate's slope, −0.012, would bring the product back into
range.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.fused.gelu_and_mul import gelu_and_mul  # isort: skip

gate, up, dout = torch.tensor([[-3.0], [300.0], [300.0]], dtype=torch.float16, device=device)
gate.requires_grad_()
gelu_and_mul(gate, up).backward(dout)

wide = gate.detach().double().requires_grad_()
(torch.nn.functional.gelu(wide) * up.double()).backward(dout.double())
print(f"the gate's gradient is {gate.grad.item()}; it must be {wide.grad.item()}")
assert gate.grad.isinf().all() and wide.grad.abs().item() < 2000
