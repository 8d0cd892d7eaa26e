"""Unsloth's cross-entropy computes loss and gradient from the rounded log-sum-exp.

Seven logits of 10000 have a loss of ln 7. The log-sum-exp of the other classes is 10001.792, of
which float32 keeps at most 3 decimals, and the target's logit is subtracted from it; the gradient's
softmax is exp(x − lse). With the largest logit subtracted first, neither loses anything.
"""

import numpy as np
import torch
from stand_ins import unsloth_kernels

cross_entropy = unsloth_kernels.load("cross_entropy_loss")
if unsloth_kernels.DEVICE == "cpu":  # the interpreter knows tl.cast by no other name
    cross_entropy.triton_cast = lambda x, dtype: cross_entropy.tl.cast(x, dtype)

x = np.full((1, 1, 7), 10_000.0, np.float32)
logits = torch.tensor(x, device=unsloth_kernels.DEVICE, requires_grad=True)
target = torch.tensor([[0]], device=unsloth_kernels.DEVICE)
loss = cross_entropy.fast_cross_entropy_loss(logits, target)
loss.backward()
found, gradient = loss.item(), float(logits.grad[0, 0, 1])

shifted = np.exp(x - x.max())
share = shifted[0, 0, 1] / shifted.sum()
right = -np.log(share)
print(f"the loss is {found:.7f}; it must be {right:.7f}")
print(f"a gradient is {gradient:.7f}; it must be {share:.7f}")
assert abs(found - right) > 1e-4 and abs(gradient - share) > 1e-4 * share
