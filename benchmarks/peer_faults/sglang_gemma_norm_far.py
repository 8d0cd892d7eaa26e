"""SGLang's RMSNorm of Gemma multiplies a row's number with the stride of rows in 32 bits.

Past 2³¹ elements the offset wraps around, and what lies in front of the tensor is normalised. Rows
of a view that are 2³⁰ elements apart show it with three; memory that is not touched costs none.
"""

import importlib.util
import os
import sys
import types

import numpy as np
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
    folder = importlib.util.find_spec("sglang").submodule_search_locations[0]
    for path in ("", "/kernels", "/kernels/ops", "/kernels/ops/layernorm"):
        name = "sglang" + path.replace("/", ".")  # without its __init__, which wants a server
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [folder + path]

from sglang.kernels.ops.layernorm.minimax_m3_rmsnorm import gemma_rmsnorm  # noqa: E402

apart = 2**30
memory = torch.from_numpy(np.zeros(4 * apart + 2, np.float16)).to(device)
rows = memory[2 * apart :].as_strided((3, 2), (apart, 1))
rows.copy_(torch.tensor([[3.0, 4.0]] * 3))
first, _, last = gemma_rmsnorm(rows, torch.zeros(2, device=device), 0.0).tolist()
print(f"the last row is {last}; it must be {first}, as the first, which is the same")
assert first[0] > 0.8 and last != first
