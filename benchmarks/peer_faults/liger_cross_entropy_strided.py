"""Liger-Kernel's cross-entropy of logits that are not contiguous: another gradient, silently.

Its forward makes a contiguous copy, which inside an autograd.Function requires no grad, so that the
kernel leaves the gradient out; backward then returns the logits in its place.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
import numpy as np
import torch
from liger_kernel.transformers.functional import liger_cross_entropy

device = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
x = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
target = np.array([0, 1])

logits = torch.tensor(x.T.copy(), device=device).T.requires_grad_()  # x, its axes swapped in memory
liger_cross_entropy(logits.clone(), torch.tensor(target, device=device)).backward()

p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
right = (p - np.eye(2)[target]) / 2
print("gradient  ", logits.grad.tolist())
print("it must be", right.tolist())
assert not np.allclose(logits.grad.cpu(), right)
