"""PyTorch's tanh GELU on a CPU loses all precision in the left tail.

0.5·x·(1 + tanh u) cancels where tanh u is near −1: at x = −6 nothing is left of it, nor of its
gradient. x/(1 + exp(−2u)) is the same number, and loses nothing.
"""

import numpy as np
import torch

x = -6.0
found = float(torch.nn.functional.gelu(torch.tensor([x] * 16), approximate="tanh")[0])
u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
right = x / (1 + np.exp(-2 * u))
print(f"the result is {found}; it must be {right}")
assert abs(found - right) > 0.01 * abs(right)
