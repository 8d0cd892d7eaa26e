"""flash-linear-attention's cross-entropy subtracts a logit from the rounded log-sum-exp.

Two logits of 10000 have a loss of ln 2 and a log-sum-exp of 10000.693, of which float32 keeps at
most 3 decimals. log Σ exp(x − max) − (x − max) is the same number, and loses nothing.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from fla.modules.fused_cross_entropy import cross_entropy_loss  # noqa: E402

x = np.array([[10_000.0, 10_000.0]], np.float32)
target = torch.tensor([0], device=device)
found = float(cross_entropy_loss(torch.tensor(x, device=device), target)[0].sum())

shifted = x - x.max()
right = float(np.log(np.exp(shifted).sum()) - shifted[0, 0])
print(f"the loss is {found:.7f}; it must be {right:.7f}")
assert abs(found - right) > 1e-4
