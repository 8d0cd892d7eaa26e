"""Kernels with planted faults, compiled in a process without Triton's interpreter."""

import json

import torch
import triton
import triton.language as tl

from twofold.core.verify.compiling.chips import CHIPS
from twofold.core.verify.compiling.compiled import Compiled, describe
from twofold.core.verify.compiling.compiles import compiling


@triton.jit
def product_kernel(x_ptr, y_ptr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, tl.dot(x, x, input_precision=PRECISION))


found = {}
for name, target, precision, block, warps in (
    ("sound", "sm_80", "tf32", 32, 4),
    ("spilling", "sm_80", "tf32x3", 64, 1),
    ("without matrix unit", "sm_80", "ieee", 32, 4),
    ("64 rows", "sm_90a", "bfloat16", 64, 4),
    ("32 rows", "sm_90a", "bfloat16", 32, 4),
    ("without wgmma", "sm_90a", "bfloat16", 64, 2),
):

    def keep(function, args, options, launch, name=name, target=target):
        empty = Compiled("planted", function.__name__, target, "", "")
        kernel = launch()
        found[name] = describe(empty, kernel).faults()
        found["lines"] = "!dbg" in kernel.asm["llir"]

    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    x = torch.empty(block, block, dtype=dtype)
    precision = None if dtype == torch.bfloat16 else precision
    with compiling(CHIPS[target], keep):
        product_kernel[(1,)](x, x, PRECISION=precision, BLOCK=block, num_warps=warps)
print(json.dumps(found))
