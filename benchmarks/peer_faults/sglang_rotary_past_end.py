"""SGLang's interleaved rotation by three positions reads past the end of its table.

Where only part of a head is rotated, or its size is not a power of two, lanes that rotate nothing
load cosines and sines by the first of the three positions, past the end of its row: at the table's
last position, past the table. Nothing computed from them is stored. The interpreter does not check
bounds itself; here the addresses it loads from are inspected.
"""

import os

import numpy as np
import torch

os.environ["TRITON_INTERPRET"] = "1"
from stand_ins import sglang_here  # noqa: E402, F401  isort: skip
from triton.runtime import interpreter  # noqa: E402

from sglang.kernels.ops.attention.rotary_triton import triton_mrope_fused  # isort: skip  # noqa: E402

head_size, rotary_dim, last = 64, 16, 3
# the table begins a memory that goes on behind it, so that nothing here depends on what is there
memory = torch.zeros(1024)
table = memory[: (last + 1) * rotary_dim].view(last + 1, rotary_dim)
begin, end = table.data_ptr(), table.data_ptr() + table.nbytes
furthest = end
plain = interpreter.InterpreterBuilder.create_masked_load


def looked_at(self, pointers, mask, *more, **how):
    global furthest
    addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
    near = addresses[(addresses >= begin) & (addresses < begin + memory.nbytes)]
    furthest = max(furthest, int(near.max(initial=0)) + table.element_size())
    return plain(self, pointers, mask, *more, **how)


interpreter.InterpreterBuilder.create_masked_load = looked_at
q, k = torch.ones(1, head_size), torch.ones(1, head_size)
positions = torch.full((3, 1), last)
triton_mrope_fused(
    q, k, table, positions, [4, 2, 2], head_size, rotary_dim, True, False, True, None
)  # fmt: skip
found = (furthest - end) // table.element_size()
print(f"{found} numbers behind the table's end are read; it must be 0")
assert found > 0
