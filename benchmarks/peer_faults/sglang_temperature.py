"""SGLang's two extend kernels disagree on the temperature for one `xai_temperature_len`.

For a query at a position p past that length L, one multiplies scores by log2(p)/log2(L), as both
decoding kernels do; the unified kernel, which deterministic inference uses, multiplies them by L/(p
+ 1). One sharpens with distance, the other flattens, so turning determinism on gives another model.
"""

import math

import torch
from stand_ins.sglang_here import device

from sglang.kernels.ops.attention.extend_attention import (  # isort: skip
    extend_attention_fwd,
    extend_attention_fwd_unified,
)

length, position = 4, 15
keys = torch.zeros(position + 1, 1, 16, device=device)
keys[0] = 1.0  # its score is 1, that of all others 0
values = keys.clone()
q = torch.full((1, 1, 16), 1 / 16, device=device)


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32, device=device)


places = torch.arange(position + 1, device=device)
split, unified = torch.empty_like(q), torch.empty_like(q)
extend_attention_fwd(
    q, keys[position:], values[position:], split, keys, values, ints(0, 1), ints(0, position),
    places[:position], None, True, None, 1, 1.0, 1.0, 1.0, xai_temperature_len=length,
)  # fmt: skip
extend_attention_fwd_unified(
    q, unified, keys, values, 1.0, 1.0, ints(0, 1), ints(0, position + 1), places, ints(position),
    1, sm_scale=1.0, xai_temperature_len=length,
)  # fmt: skip


def weight_of_the_first(temperature):
    return math.exp(temperature) / (math.exp(temperature) + position)


right = weight_of_the_first(math.log2(position) / math.log2(length))
found, other = (float(x[0, 0, 0]) for x in (unified, split))
print(f"the first key's weight is {found:.4f}; it must be {right:.4f}, as the other kernel's is")
assert abs(other - right) < 1e-3 < abs(found - weight_of_the_first(1.0))
assert abs(found - weight_of_the_first(length / (position + 1))) < 1e-3
