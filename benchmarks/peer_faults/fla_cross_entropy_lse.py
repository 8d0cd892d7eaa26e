"""flash-linear-attention's cross-entropy computes the gradient from the rounded log-sum-exp.

The gradient's softmax is exp(x − lse). A log-sum-exp of 300 is known to 1.5e-5 in float32, and so,
relatively, is every exp(x − lse). exp(x − max)/sum is known to a few units of 6e-8, however large
the logits are.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from fla.modules.fused_cross_entropy import cross_entropy_loss  # noqa: E402

x = np.linspace(298, 300, 8, dtype=np.float32)
logits = torch.tensor(x[None], device=device, requires_grad=True)
cross_entropy_loss(logits, torch.tensor([7], device=device))[0].sum().backward()
found = logits.grad.cpu().numpy().ravel()[:7].astype(np.float64)  # no target among them

wide = x.astype(np.float64)
exact = (np.exp(wide - 300) / np.exp(wide - 300).sum())[:7]
in_float32 = (np.exp(x - x.max()) / np.exp(x - x.max()).sum())[:7]
off, other = (np.abs(p / exact - 1).max() for p in (found, in_float32))
print(f"the gradient is off by {off:.1e}; it must be by no more than NumPy's float32: {other:.1e}")
assert off > 10 * other
