"""Tensors whose elements lie far apart in memory, little of which is touched."""

import numpy as np
import torch


def apart(side, x, strides):
    """Return a tensor's numbers in memory with these strides."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True))
    if side.device == "cuda":
        memory = torch.empty(size, dtype=x.dtype, device="cuda")
    else:  # its pages are allocated on first touch, unlike torch's own, perhaps
        memory = torch.from_numpy(np.zeros(size * x.element_size(), np.uint8)).view(x.dtype)
    wide = memory.as_strided(x.shape, strides)
    wide.copy_(x)
    return wide
