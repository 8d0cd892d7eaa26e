"""PyTorch's float32 SiLU on a CPU: the gradient's 1 − σ(x) cancels where σ(x) is near 1.

σ(x) + x·σ(x)·σ(−x) is the same number, and loses nothing.
"""

import numpy as np
import torch


def gradient(x):
    decay = np.exp(-x)
    near = 1 / (1 + decay)
    return near + x * decay * near * near


x = np.linspace(8, 16, 100_001, dtype=np.float32)
leaf = torch.tensor(x, requires_grad=True)
torch.nn.functional.silu(leaf).sum().backward()
exact = gradient(x.astype(np.float64))
off, other = (np.abs(g - exact).max() for g in (leaf.grad.numpy(), gradient(x)))
print(f"the gradient is off by {off:.1e} at most; it must be by no more than {other:.1e}")
assert off > 2 * other
