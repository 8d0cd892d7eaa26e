"""SGLang's split verification multiplies uninitialised memory by 0 and adds it to the output.

A split without keys leaves its partial output as `torch.empty` made it, or as an earlier batch left
it, and has weight 0: where that memory holds a NaN or an infinity, the output is NaN. Sequences of
up to 96 keys have such splits, because each of the 4 or more splits takes 32 keys before the next
takes any.
"""

import torch
from stand_ins.sglang_here import device

from sglang.kernels.ops.attention.verify_splitkv import verify_splitkv_fwd  # isort: skip

keys = torch.ones(10, 1, 16, device=device)
ends, prefix = (torch.tensor([0, n], dtype=torch.int32, device=device) for n in (1, 9))
places = torch.arange(9, device=device)


# PyTorch's own mode, in which what is not initialised is NaN
torch.use_deterministic_algorithms(True)
new, out = keys[:1].clone(), torch.empty(1, 1, 16, device=device)
ran = verify_splitkv_fwd(
    new, new, new, out, keys, keys, ends, prefix, places, None, True, None, 1, 1.0, 1.0
)
found = float(out[0, 0, 0])
print(f"the output is {found}; it must be 1.0, as all values are")
assert ran and found != found
