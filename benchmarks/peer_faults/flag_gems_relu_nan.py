"""FlagGems' ReLU and ReGLU turn NaN into 0.

They keep what is greater than 0 and put 0 for everything else, and NaN is not greater. torch's
ReLU, for which the first stands in, keeps NaN, so that a fault upstream is seen.
"""

import math

import torch
from stand_ins.flag_gems_here import device

from flag_gems.fused.reglu import reglu  # isort: skip

found = reglu(torch.tensor([[math.nan, 1.0]], device=device)).item()
right = torch.relu(torch.tensor(math.nan)).item() * 1.0
print(f"ReGLU of a gate that is NaN is {found}; it must be {right}")
assert found == 0.0 and math.isnan(right)
