"""Liger-Kernel's cross-entropy rounds each row's loss to the logits' dtype before adding.

The sum is therefore that of rounded losses: here five losses of ln 2, in bfloat16.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
from liger_kernel.transformers.functional import liger_cross_entropy  # noqa: E402

logits = torch.zeros(5, 2, dtype=torch.bfloat16, device=device)
target = torch.zeros(5, dtype=torch.int64, device=device)
found = float(liger_cross_entropy(logits, target, reduction="sum"))

exact, place = 5 * np.log(2), 2.0**-6  # bfloat16's last place between 2 and 4
right = np.round(exact / place) * place
print(f"the loss is {found}; it must be {right}, the nearest to {exact:.6f}")
assert abs(found - exact) > place / 2
