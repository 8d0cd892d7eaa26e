"""Liger-Kernel's rotary embedding rotates the wrong rows where there is one position.

Decoding is such a case. The kernel takes the stride of the axis of positions for the distance
between rows. With one position that axis may have any stride: in a contiguous (batch, heads, 1,
head_dim) it has that of the heads. With a batch of two and two heads, the first sequence's second
head is rotated twice, and the second sequence not at all.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_rope  # noqa: E402

q = torch.tensor([1.0, 2.0], device=device).expand(2, 2, 1, 2).contiguous()
cos, sin = torch.zeros(1, 1, 2, device=device), torch.ones(1, 1, 2, device=device)  # 90 degrees
found = liger_rope(q.clone(), q.clone(), cos, sin)[0].cpu().numpy()

right = np.broadcast_to([-2.0, 1.0], found.shape)
print(f"the second sequence is {found[1].tolist()}; it must be {right[1].tolist()}")
assert not np.array_equal(found[1], right[1])
