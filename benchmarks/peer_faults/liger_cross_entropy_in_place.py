"""Liger-Kernel's cross-entropy overwrites its logits without telling autograd.

An operation that made the logits and saved them for its own backward, here exp, then silently
computes a wrong gradient; had the write been marked, autograd would raise an error. Known:
Liger-Kernel issue 272.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_cross_entropy  # noqa: E402

x, target = np.array([[0.0, 1.0]], np.float32), np.array([0])
a = torch.tensor(x, device=device, requires_grad=True)
liger_cross_entropy(a.exp(), torch.tensor(target, device=device)).backward()

logits = np.exp(x)
p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
right = (p - np.eye(2)[target]) * logits
found = a.grad.cpu().numpy()
print(f"the gradient is {found.tolist()}; it must be {right.tolist()}")
assert not np.allclose(found, right, rtol=0.1)
