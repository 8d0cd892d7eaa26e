"""FlagGems' cross-entropy of logits far below 0 gives a loss of −∞ and a gradient of NaN.

The running maximum starts at 0 instead of −∞, so for logits that are all negative it stays 0: below
−104 every exp(x − 0) is 0 in float32, and the log-sum-exp is log 0.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.fused.cross_entropy_loss import cross_entropy_loss  # isort: skip

logits = torch.full((1, 2), -200.0, device=device, requires_grad=True)
loss = cross_entropy_loss(logits, torch.tensor([0], device=device))
loss.backward()

right = torch.log(torch.tensor(2.0)).item()
print(f"the loss is {loss.item()}; it must be {right}")
print(f"the gradient is {logits.grad.tolist()}; it must be [[-0.5, 0.5]]")
assert loss.item() == -torch.inf and logits.grad.isnan().all()
