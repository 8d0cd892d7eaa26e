"""PyTorch's float32 GELU on a CPU, and its gradient, lose more than their formulas in NumPy.

The forward pass does so where its input is contiguous: for other inputs, another implementation
loses no more than NumPy.
"""

import math

import numpy as np
import torch


def parts(x):
    erf = np.array([math.erf(float(a) * math.sqrt(0.5)) for a in x]).astype(x.dtype)
    half, density = x.dtype.type(0.5), x.dtype.type(1 / math.sqrt(2 * math.pi))
    return half * (1 + erf), np.exp(-half * x * x) * density


def gelu(x):
    return x * parts(x)[0]


def gradient(x):
    cdf, density = parts(x)
    return cdf + x * density


x = np.linspace(0.001, 4, 100_001, dtype=np.float32)
found = torch.nn.functional.gelu(torch.tensor(x)).numpy()
strided = torch.nn.functional.gelu(torch.tensor(x).repeat_interleave(2)[::2]).numpy()
exact = gelu(x.astype(np.float64))
off, apart, other = (np.abs(y / exact - 1).max() for y in (found, strided, gelu(x)))
print(f"it is off by {off:.1e} of itself; it must be by no more than NumPy's float32: {other:.1e}")
assert off > 2 * other and apart < 2 * other

x = np.linspace(-4, 4, 100_001, dtype=np.float32)
leaf = torch.tensor(x, requires_grad=True)
torch.nn.functional.gelu(leaf).sum().backward()
exact = gradient(x.astype(np.float64))
off, other = (np.abs(g - exact).max() for g in (leaf.grad.numpy(), gradient(x)))
print(f"the gradient is off by {off:.1e} at most; it must be by no more than {other:.1e}")
assert off > 1.5 * other
