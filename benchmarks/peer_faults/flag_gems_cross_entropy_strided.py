"""FlagGems' cross-entropy raises in backward if its logits are not contiguous.

Forward makes a contiguous copy, which requires no gradient, asks the copy whether to save what
backward needs, and so saves nothing.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.fused.cross_entropy_loss import cross_entropy_loss  # isort: skip

logits = torch.zeros(3, 2, device=device, requires_grad=True)
loss = cross_entropy_loss(logits.t(), torch.tensor([0, 1], device=device))
raised = ""
try:
    loss.backward()
except ValueError as error:
    raised = str(error)
print(f"backward raises {raised!r}; there must be a gradient")
assert raised and logits.grad is None
