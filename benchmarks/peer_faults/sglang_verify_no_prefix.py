"""SGLang's split verification gives NaN where a sequence has no keys before the new ones.

None of its splits has a key then: the largest of their log-sum-exps is −∞, and −∞ − (−∞) is NaN.
The kernel that it stands in for, `extend_attention_fwd`, has the right output.
"""

import importlib.util
import os
import sys
import types

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
    folder = importlib.util.find_spec("sglang").submodule_search_locations[0]
    for path in ("", "/srt", "/kernels", "/kernels/ops", "/kernels/ops/attention"):
        name = "sglang" + path.replace("/", ".")  # without its __init__, which wants a server
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [folder + path]
    utils = sys.modules["sglang.srt.utils"] = types.ModuleType("sglang.srt.utils")
    for name in ("is_cuda", "is_hip", "is_gfx95_supported", "is_gfx1250_supported"):
        setattr(utils, name, lambda: False)
    utils.get_device_core_count = lambda device_id: 0

from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd  # noqa: E402
from sglang.kernels.ops.attention.verify_splitkv import VerifySplitKV  # noqa: E402

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
