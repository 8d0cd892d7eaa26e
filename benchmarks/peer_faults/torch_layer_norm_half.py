"""PyTorch's layer norm on a CPU saves the mean and 1/σ in the input's dtype.

In bfloat16, the gradient of a row with a large mean is computed from other numbers than the output
was. In float16, 1/σ of a constant row is 1/√eps, which exceeds 65504, the largest number, where eps
is less than 2.4e-10: then the gradient is NaN.
"""

import numpy as np
import torch


def gradient(x, dtype, eps=1e-5):
    leaf = torch.tensor([x], dtype=dtype, requires_grad=True)
    weight, bias = torch.ones(len(x), dtype=dtype), torch.zeros(len(x), dtype=dtype)
    out = torch.nn.functional.layer_norm(leaf, (len(x),), weight, bias, eps)
    out.backward(torch.tensor([[1.0] + [0.0] * (len(x) - 1)], dtype=dtype))
    return leaf.grad.float().numpy().ravel()


def right(x, eps=1e-5):
    x, dout = np.array(x), np.eye(len(x))[0]
    rstd = 1 / np.sqrt(x.var() + eps)
    xhat = (x - x.mean()) * rstd
    return (dout - dout.mean() - xhat * (dout * xhat).mean()) * rstd


row = [128.0, 128.0, 129.0, 130.0]  # bfloat16 holds them, not their mean
found, exact = gradient(row, torch.bfloat16), right(row)
print(f"bfloat16: the gradient is {found.tolist()}; it must be {exact.tolist()}")
assert np.abs(found - exact).max() > 0.2 * np.abs(exact).max()

found = gradient([1.0], torch.float16, eps=1e-12)
print(f"float16: the gradient is {found.tolist()}; it must be {right([1.0], 1e-12).tolist()}")
assert np.isnan(found).all()
