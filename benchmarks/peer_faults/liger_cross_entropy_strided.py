"""Liger-Kernel's cross-entropy gives a wrong gradient if its logits are not contiguous.

Forward makes a contiguous copy, which inside an autograd.Function requires no grad, so the kernel
leaves the gradient out; backward then silently takes the logits for it.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_cross_entropy  # noqa: E402

x, target = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32), np.array([0, 1])
logits = torch.tensor(x.T.copy(), device=device).T.requires_grad_()  # x, axes swapped in memory
liger_cross_entropy(logits.clone(), torch.tensor(target, device=device)).backward()

p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
right = (p - np.eye(2)[target]) / 2
found = logits.grad.cpu().numpy()
print(f"the gradient is {found.tolist()}; it must be {right.tolist()}")
assert np.array_equal(found, x)
