"""SGLang's prefill attention computes offsets of tokens and heads in 32 bits, which overflow.

Past 2³¹ elements the product of number and stride wraps around, and the query is read from in front
of its tensor. Three tokens of a view, 2³⁰ elements apart, show it; memory that is never touched
costs nothing.
"""

import numpy as np
import torch
from stand_ins.sglang_here import device

from sglang.kernels.ops.attention.prefill_attention import context_attention_fwd  # isort: skip

apart = 2**30
memory = torch.from_numpy(np.zeros(4 * apart + 16, np.float16)).to(device)
q = memory[2 * apart :].as_strided((3, 1, 16), (apart, 16, 1))
q.fill_(0.25)
keys = torch.zeros(3, 1, 16, device=device, dtype=torch.float16)
keys[0] = 1.0  # its score is 4, that of the others 0
start, length = (torch.tensor([x], dtype=torch.int32, device=device) for x in (0, 3))


def weight_of_the_first(q):
    """Return how much of the first key the last query's output has."""
    out = torch.zeros_like(keys)
    context_attention_fwd(q, keys, keys, out, start, length, 3, is_causal=False, sm_scale=1.0)
    return float(out[2, 0, 0])


found, right = weight_of_the_first(q), weight_of_the_first(q.contiguous())
print(f"the first key's weight is {found:.3f}; it must be {right:.3f}")
assert right > 0.9 and not found > 0.4
