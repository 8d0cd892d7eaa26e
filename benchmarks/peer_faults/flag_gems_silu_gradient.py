"""FlagGems' SiLU: the gradient's 1 − σ(x) cancels where σ(x) is near 1.

The error is then multiplied by x. x·σ(−x) is x·(1 − σ(x)) to full precision.
"""

import torch
from stand_ins.flag_gems_here import device

from flag_gems.ops.silu import silu_backward  # isort: skip

x = torch.linspace(4.0, 12.0, 1001, device=device)
found = silu_backward(torch.ones_like(x), x).double()

wide = x.double()
right = torch.sigmoid(wide) * (1 + wide * torch.sigmoid(-wide))
careful = torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))
off, other = ((x.double() - right).abs().max().item() for x in (found, careful))
print(f"the gradient is off by {off:.1e} at most; it must be by no more than {other:.1e}")
assert off > 2 * other
