"""Cut cross-entropy rounds the products of the target's logit, and of no other, to 16 bits.

The loss is the log-sum-exp of logits that matrix units add up from exact products, minus the
target's logit, whose products are first rounded to the embeddings' dtype. Where the target is all
but certain, the two come out as the same number, and the loss as 0.
"""

import os

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
import triton.language as tl  # noqa: E402
from triton.language.extra import libdevice  # noqa: E402

if device == "cpu":  # the interpreter has no libdevice
    libdevice.log1p = lambda x: tl.log(1 + x)
from cut_cross_entropy import linear_cross_entropy  # noqa: E402

x, w = np.float16(1 + 2**-10), np.float16(1 + 511 * 2**-10)
embedding = torch.full((1, 256), float(x), dtype=torch.float16, device=device)
classifier = torch.zeros(2, 256, dtype=torch.float16, device=device)
classifier[0] = float(w)
target = torch.tensor([0], device=device)
found = float(linear_cross_entropy(embedding, classifier, target))

logits = np.array([256 * float(x) * float(w), 0.0])
right = np.log(np.exp(logits - logits.max()).sum()) - (logits[0] - logits.max())
print(f"the loss is {found:.7f}; it must be {right:.7f}")
assert abs(found - right) > 0.1
