"""PyTorch's cross-entropy on a CPU rounds the log-softmax to the input's dtype on the way.

Five losses of ln 2 in bfloat16 are added once rounded; added in float32 and rounded once, they give
another sum.
"""

import numpy as np
import torch

logits, target = torch.zeros(5, 2, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.int64)
found = float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))

exact, place = 5 * np.log(2), 2.0**-6  # bfloat16's last place between 2 and 4
right = np.round(exact / place) * place
print(f"the loss is {found}; it must be {right}, the nearest to {exact:.6f}")
assert abs(found - exact) > place / 2
