"""SGLang's split verification gives NaN for a sequence without keys before its new ones.

None of its splits has a key then: the largest of their log-sum-exps is −∞, and −∞ − (−∞) is NaN.
The kernel that it stands in for, `extend_attention_fwd`, gives the right output.
"""

import torch
from stand_ins.sglang_here import device

from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd  # isort: skip
from sglang.kernels.ops.attention.verify_splitkv import VerifySplitKV  # isort: skip

one = torch.ones(1, 1, 16, device=device)  # the query, its key and its value, and all of a cache
ends, none = (torch.tensor([0, n], dtype=torch.int32, device=device) for n in (1, 0))
places = torch.arange(0, device=device)
other = torch.empty_like(one)
extend_attention_fwd(
    one, one, one, other, one, one, ends, none, places, None, True, None, 1, 1.0, 1.0
)
kernels = VerifySplitKV(1, 1, 1, 16, 16, 1, device=device)
kernels.att_out.zero_()  # what it has not initialised is not what is shown
found, right = float(kernels(one, one, one, one, one, ends, none, places, 0.25)[0, 0, 0]), 1.0
print(f"the output is {found}; it must be {right}")
assert found != found and float(other[0, 0, 0]) == right
