"""Numbers that lie far apart in memory, of which little is touched."""

import numpy as np
import torch


def apart(side, x, strides):
    """Return numbers of a kernels' tensor in memory with these strides."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    if side.device == "cuda":
        memory = torch.empty(size, dtype=x.dtype, device="cuda")
    else:  # its pages are taken when they are touched, which torch's own need not be
        memory = torch.from_numpy(np.zeros(size * x.element_size(), np.uint8)).view(x.dtype)
    wide = memory.as_strided(x.shape, strides)
    wide.copy_(x)
    return wide
