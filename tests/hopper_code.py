"""Compile attention for Hopper without a device: python hopper_code.py HEAD_DIM [causal].

Prints the machine code of the table's variant, in bfloat16.
"""

import sys
from typing import Any

import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from twofold.core.verify.compiling.chips import CHIPS
from twofold.core.verify.compiling.compiled import gpu_target
from twofold.core.verify.compiling.machine_code import disassemble
from twofold.kernels.attention_hopper import ROWS, VARIANTS, Variant
from twofold.kernels.attention_hopper_kernel import forward_kernel


def machine_code(head_dim: int, variant: Variant, causal: bool) -> str:
    """Return the listing."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    constants = dict(
        CAUSAL=causal, BLOCK_N=variant.block_n, STAGES=variant.stages,
        CONSUMERS=variant.consumers, PAIRS=variant.pairs and causal, TURNS=variant.turns,
        EARLY=variant.early, REGISTERS=variant.registers,
    )  # fmt: skip
    rows = {"q_desc": ROWS, "k_desc": variant.block_n, "v_desc": variant.block_n, "out_desc": ROWS}
    types = {
        name: f"tensordesc<bf16[1,1,{count},{head_dim}],{layout!r}>" for name, count in rows.items()
    }
    types |= {"lse_ptr": "*fp32", **dict.fromkeys("HGMN", "i32"), "tiles": "i32"}
    types |= {"together": "i32", "scale": "fp32", **dict.fromkeys(constants, "constexpr")}
    return listing(forward_kernel, types, constants)


def listing(kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> str:
    """Return the machine code of a Gluon kernel for these types and constants."""
    source = GluonASTSource(kernel, types, constants)
    target = gpu_target(CHIPS["sm_90a"])
    return disassemble(triton.compile(source, target=target, options={"num_warps": 4}).asm["cubin"])


if __name__ == "__main__":
    head_dim, causal = int(sys.argv[1]), "causal" in sys.argv
    print(machine_code(head_dim, VARIANTS[head_dim, causal], causal))
