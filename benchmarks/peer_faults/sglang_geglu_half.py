"""SGLang's GEGLU rounds GELU to the dtype of its input before it is multiplied with up.

The result is rounded as well: of numbers of 16 bits it is off by more than half a unit in the last
place, which is what the nearest number is off by at most.
"""

import importlib.util
import math
import os
import sys
import types

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
    folder = importlib.util.find_spec("sglang").submodule_search_locations[0]
    for path in ("", "/srt", "/kernels", "/kernels/ops", "/kernels/ops/activation"):
        name = "sglang" + path.replace("/", ".")  # without its __init__, which wants a server
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [folder + path]
    utils = sys.modules["sglang.srt.utils"] = types.ModuleType("sglang.srt.utils")
    utils.is_hip = lambda: False

from sglang.kernels.ops.activation.gelu_and_mul_triton import gelu_and_mul_triton  # noqa: E402

x = 1.1484375  # a number of bfloat16
both = torch.tensor([[x, x]], device=device, dtype=torch.bfloat16)
found = float(gelu_and_mul_triton(both)[0])
exact = x * math.erfc(-x / math.sqrt(2)) / 2 * x
right = float(torch.tensor(exact, dtype=torch.bfloat16))
print(f"the result is {found:.6g}; it must be {right:.6g}, the nearest to {exact:.6g}")
assert abs(found - exact) > 2**-8 * 1.2 / 2  # half a unit, and a fifth of it
