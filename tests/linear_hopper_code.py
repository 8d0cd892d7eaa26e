"""Compile the product for Hopper without a device: python linear_hopper_code.py VARIANT [gelu].

Prints the machine code of x·Wᵀ, or of that followed by a bias and GELU, in bfloat16.
"""

import sys
from pathlib import Path

from hopper_code import listing

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from linear_hopper_kernel import product_kernel
from linear_variants import BLOCK_K, GROUP_M, VARIANTS, Variant, layout_of


def machine_code(how: Variant, gelu: bool) -> str:
    """Return the listing."""
    parts = how.parts[not gelu]
    constants = dict(
        BLOCK_N=how.block_n, BLOCK_K=BLOCK_K, STAGES=how.stages, SHARED=how.shared, A_TURNED=False,
        B_TURNED=True, ROWS=how.rows, GROUP_M=GROUP_M, HAS_BIAS=gelu, GELU=gelu, PARTS=parts,
    )  # fmt: skip
    blocks = {
        "a_desc": (how.rows, BLOCK_K), "b_desc": (how.block_n, BLOCK_K),
        "c_desc": (how.rows, how.block_n // parts), "z_desc": (how.rows, how.block_n // parts),
    }  # fmt: skip
    types = {
        name: f"tensordesc<bf16[{rows},{columns}],{layout_of(columns)!r}>"
        for name, (rows, columns) in blocks.items()
    }
    types |= {"bias_ptr": "*bf16", **dict.fromkeys(("M", "N", "K", "tiles"), "i32")}
    return listing(product_kernel, types | dict.fromkeys(constants, "constexpr"), constants)


if __name__ == "__main__":
    print(machine_code(VARIANTS[int(sys.argv[1])], "gelu" in sys.argv))
