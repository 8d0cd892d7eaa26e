"""Liger-Kernel's cross-entropy gives another gradient in a second backward of one graph.

Backward multiplies the gradient that forward saved by the loss's, in place, and does so each time.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_cross_entropy  # noqa: E402

logits = torch.tensor([[1.0, 2.0]], device=device, requires_grad=True)
loss = liger_cross_entropy(logits.clone(), torch.tensor([0], device=device))
dloss = torch.tensor(0.5, device=device)
first, second = (
    torch.autograd.grad(loss, logits, dloss, retain_graph=True)[0].cpu().numpy().copy()
    for _ in range(2)
)

p = np.exp([1.0, 2.0]) / np.exp([1.0, 2.0]).sum()
right = 0.5 * (p - [1, 0])
print(f"the gradients are {first.tolist()} and {second.tolist()}; both must be {right.tolist()}")
assert np.allclose(first, right) and np.allclose(second, right / 2)
