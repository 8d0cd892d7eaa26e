"""Cut cross-entropy releases its lock before all threads have stored what it guards.

Programs add to a row's log-sum-exp in memory, one after the other, under a lock. One thread
releases it, and nothing in the kernel makes the release wait for the other threads' stores: there
is no barrier in between. The next holder of the lock may read the sum before those stores arrive,
and its own store then overwrites them. Triton 3.9 inserts a barrier there; Triton 3.6 does not.
"""

import os
import re

os.environ.pop("TRITON_INTERPRET", None)  # to be compiled, for which no GPU is needed

import triton  # noqa: E402
from cut_cross_entropy.cce_lse_forward import _cce_lse_forward_kernel  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

kernel = _cce_lse_forward_kernel
while not isinstance(kernel, triton.JITFunction):
    kernel = kernel.fn
fixed = dict(  # as it launches, of rows that all count
    LA=None, Valids=None, softcap=None, B_BIN=128, HAS_VALIDS=False, BLOCK_B=256, BLOCK_V=128,
    BLOCK_D=32, GROUP_B=8, EVEN_D=True, HAS_SOFTCAP=False, HAS_LA=False, DOT_PRECISION="ieee",
)  # fmt: skip
kinds = {"E": "*bf16", "C": "*bf16", "LSE": "*fp32", "Locks": "*u32"}
signature = {n: "constexpr" if n in fixed else kinds.get(n, "i32") for n in kernel.arg_names}
of_places = {(kernel.arg_names.index(name),): x for name, x in fixed.items()}
source = ASTSource(kernel, signature, of_places)
target = GPUTarget("cuda", 90, 32)
compiled = triton.compile(source, target, options={"num_warps": 8, "num_stages": 3}).asm


def barriers(code: str, store: str, barrier: str, release: str) -> int:
    """Count them between the last store and the release behind it."""
    steps = re.findall(f"{store}|{barrier}|{release}", code)
    released = max(i for i, step in enumerate(steps) if re.match(release, step))
    stored = max(i for i, step in enumerate(steps[:released]) if re.match(store, step))
    return released - stored - 1


asked = barriers(compiled["ttgir"], r"tt\.store", r"\w+\.barrier", r"tt\.atomic_rmw exch")
put = barriers(compiled["ptx"], r"st\.global", r"bar\.sync", r"atom\S*\.exch")
print(f"between store and release the kernel has {asked} barriers; it must be 1")
print(f"Triton {triton.__version__} puts {put} there")
assert asked == 0
