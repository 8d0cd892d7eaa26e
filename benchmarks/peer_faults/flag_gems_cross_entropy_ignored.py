"""FlagGems' cross-entropy reads the logit of an ignored target, 100 classes before the row.

For the first rows, that is before the tensor. What is read is multiplied by 0, which gives NaN if
it is ∞ or NaN: here ∞ stands 100 numbers before the logits.
"""

import math

import torch
from stand_ins.flag_gems_here import device

from flag_gems.fused.cross_entropy_loss import cross_entropy_loss  # isort: skip

memory = torch.zeros(104, device=device)
memory[0] = math.inf
logits, targets = memory[100:].reshape(2, 2), torch.tensor([-100, 0], device=device)
found = cross_entropy_loss(logits, targets, ignore_index=-100).item()

print(f"the loss is {found}; it must be {math.log(2)}")
assert math.isnan(found)
