"""SGLang's plain decoding kernel rounds each product of q and k to their dtype.

The rounded products are added up in float32: where they cancel, the score is nothing but rounding
error, and in float16 a product past 65504 is infinite. The kernel for heads that share keys does
neither; its matrix product is exact up to the sum, which is in float32.
"""

import math

import torch
from stand_ins.sglang_here import device

from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd_normal  # isort: skip


def weight_of_the_first(query, key, dtype):
    """Return how much of the first of two keys is in the output; the second key is 0."""
    q = torch.zeros(1, 1, 16, device=device, dtype=dtype)
    keys = torch.zeros(2, 1, 16, device=device, dtype=dtype)
    q[0, 0, :2], keys[0, 0, :2] = torch.tensor(query), torch.tensor(key)
    values, out = torch.zeros_like(keys), torch.empty_like(q)
    values[0] = 1.0
    parts, lses = (torch.empty(1, 1, 1, *more, device=device) for more in ((16,), ()))
    ends, one = (torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 2], [1]))
    places = torch.arange(2, device=device)
    decode_attention_fwd_normal(q, keys, values, out, ends, places, parts, lses, one, 1, 1.0, 1.0)
    return float(out[0, 0, 0])


for dtype, query, key in (
    (torch.bfloat16, (129.0, -130.0), (129.0, 128.0)),
    (torch.float16, (300.0, -300.0), (300.0, 300.0)),
):
    score = sum(a * b for a, b in zip(query, key, strict=True))  # exact
    right = 1 / (1 + math.exp(-score))
    found = weight_of_the_first(query, key, dtype)
    print(f"{dtype}: the first key's weight is {found:.3f}; it must be {right:.3f}")
    assert not abs(found - right) < 0.2
