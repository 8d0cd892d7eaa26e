"""PyTorch's GELU gradient on a CPU in float32 loses more than its formula in NumPy does."""

import math

import numpy as np
import torch

x = np.linspace(-4, 4, 100_001, dtype=np.float32)
leaf = torch.tensor(x, requires_grad=True)
torch.nn.functional.gelu(leaf).sum().backward()


def gradient(x):
    erf = np.array([math.erf(float(a) * math.sqrt(0.5)) for a in x]).astype(x.dtype)
    half, density = x.dtype.type(0.5), x.dtype.type(1 / math.sqrt(2 * math.pi))
    return half * (1 + erf) + x * np.exp(-half * x * x) * density


exact = gradient(x.astype(np.float64))
off, other = (np.abs(g - exact).max() for g in (leaf.grad.numpy(), gradient(x)))
print(f"it is off by {off:.1e} at most; it must be no more than NumPy's float32: {other:.1e}")
assert off > 1.5 * other
