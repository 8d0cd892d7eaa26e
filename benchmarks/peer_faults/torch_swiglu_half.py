"""PyTorch's silu(gate)·up in bfloat16: the activated gate is rounded before the product.

One gate in four, or so, then gives another number than one rounding of the product does.
"""

import torch

torch.manual_seed(0)
gate, up = (torch.randn(1, 1000).bfloat16() for _ in range(2))
found = torch.nn.functional.silu(gate) * up
right = (torch.nn.functional.silu(gate.double()) * up.double()).bfloat16()
wrong = int((found != right).sum())
print(f"{wrong} of 1000 products are not those rounded once; it must be none, or very few")
assert wrong > 50
