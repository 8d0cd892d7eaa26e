"""FlagGems' tanh GEGLU loses all precision in the left tail of the gate.

Where tanh u is near −1, 1 + tanh u cancels; x/(1 + exp(−2u)) is the same number to full precision.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.fused.geglu import geglu  # isort: skip

both = torch.tensor([[-5.5, 1.0]], device=device)  # the gate, and what it is multiplied with
found = geglu(both).item()

right = torch.nn.functional.gelu(both[0, :1].double(), approximate="tanh").item()
print(f"the output is {found}; it must be {right}")
assert abs(found - right) > 0.1 * abs(right)
