"""Kernels with planted faults, compiled for sm_80 in a process without Triton's interpreter."""

import json

import torch
import triton
import triton.language as tl

from twofold.core.verify.chips import CHIPS
from twofold.core.verify.compiled import Compiled, describe
from twofold.core.verify.compiles import compiling


@triton.jit
def product_kernel(x_ptr, y_ptr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    x = tl.load(x_ptr + at)
    tl.store(y_ptr + at, tl.dot(x, x, input_precision=PRECISION))


found = {}
for name, precision, block, warps in (
    ("sound", "tf32", 32, 4),
    ("spilling", "tf32x3", 64, 1),
    ("without matrix unit", "ieee", 32, 4),
):

    def keep(function, args, options, launch, name=name):
        empty = Compiled("planted", function.__name__, "sm_80", "float32", "")
        kernel = launch()
        found[name] = describe(empty, kernel).faults()
        found["lines"] = "!dbg" in kernel.asm["llir"]

    x = torch.empty(block, block)
    with compiling(CHIPS["sm_80"], keep):
        product_kernel[(1,)](x, x, PRECISION=precision, BLOCK=block, num_warps=warps)
print(json.dumps(found))
