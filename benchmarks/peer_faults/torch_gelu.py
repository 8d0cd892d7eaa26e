"""PyTorch's GELU on a CPU in float32 loses more than its formula in NumPy does.

Where the input is contiguous: of one that is not, another implementation loses no more.
"""

import math

import numpy as np
import torch

x = np.linspace(0.001, 4, 100_001, dtype=np.float32)
found = torch.nn.functional.gelu(torch.tensor(x)).numpy()
strided = torch.nn.functional.gelu(torch.tensor(x).repeat_interleave(2)[::2]).numpy()


def gelu(x):
    erf = np.array([math.erf(float(a) * math.sqrt(0.5)) for a in x]).astype(x.dtype)
    return x.dtype.type(0.5) * x * (1 + erf)


exact = gelu(x.astype(np.float64))
off, apart, other = (np.abs(y / exact - 1).max() for y in (found, strided, gelu(x)))
print(f"it is off by {off:.1e} of itself; it must be by no more than NumPy's float32: {other:.1e}")
assert off > 2 * other and apart < 2 * other
