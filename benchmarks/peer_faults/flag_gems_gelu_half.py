"""FlagGems' GELU halves its input in float16 before it computes in float32.

Half of an odd multiple of the smallest float16 number is not a float16 number: for such an input,
the result is that for another.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.gelu import gelu  # isort: skip

least = 2.0**-24
x = torch.tensor([29 * least], dtype=torch.float16, device=device)
found = gelu(x).item() / least

right = torch.nn.functional.gelu(x.double()).item() / least
print(f"the output is {found} times 2^-24; it must be {round(right)}, next to {right}")
assert (found, round(right)) == (14.0, 15)
