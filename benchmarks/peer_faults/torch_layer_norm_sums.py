"""PyTorch's layer norm on a CPU adds up the gradients of weight and bias in their own dtype.

It adds row by row: in each thread, a sum of ones stops at 256 in bfloat16 and at 2048 in float16,
whatever follows.
"""

import torch

torch.set_num_threads(1)
ROWS = 4096
for dtype in (torch.bfloat16, torch.float16):
    weight, bias = (f(8, dtype=dtype, requires_grad=True) for f in (torch.ones, torch.zeros))
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.nn.functional.layer_norm(x, (8,), weight, bias).sum().backward()
    found = bias.grad[0].item()
    print(f"{dtype}: the gradient of the bias is {found}; it must be {ROWS}")
    assert found <= ROWS / 2
