"""PyTorch's RMSNorm on a CPU loses the gradient of large rows, by the third power of 1/RMS.

That power is in the derivative of rsqrt. For rows near 1e15 it is near 1e-45, the smallest
subnormal of float32, and has no digits left, while the gradient itself, near 1e-15, has all of
them.
"""

import numpy as np
import torch

row, dout = np.array([1e15, -2e15, 4e15], np.float32), np.array([1.0, 2.0, -1.0], np.float32)
x = torch.tensor(row[None], requires_grad=True)
torch.nn.functional.rms_norm(x, (3,), torch.ones(3), 1e-6).backward(torch.tensor(dout[None]))

wide, d = row.astype(np.float64), dout.astype(np.float64)
rstd = 1 / np.sqrt((wide**2).mean() + 1e-6)
right = (d - wide * rstd * (d * wide * rstd).mean()) * rstd
found = x.grad.numpy().ravel()
print(f"the gradient is {found.tolist()}; it must be {right.tolist()}")
assert np.abs(found - right).max() > 0.02 * np.abs(right).max()
