"""Kernels compiled for GPUs that are not there: registers, spills, shared memory, matrix units.

Triton asks its driver which device it compiles for, and needs the device itself only to launch.
Here the driver names a target and nothing is launched: the contracts' pinned cases run on CPU
tensors, so every kernel is compiled as it is called, for every entry of its tile table and every
dtype, and what the compiler says is kept.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.core import ops
from twofold.core.verify import report
from twofold.core.verify.contract import precision_name

# Name, how Triton calls it, registers of a thread, bytes of shared memory of a program.
TARGETS = {
    "sm_80": ("cuda", 80, 32, 255, 163 * 1024),
    "sm_90a": ("cuda", 90, 32, 255, 227 * 1024),
    "sm_100a": ("cuda", 100, 32, 255, 227 * 1024),
    "gfx942": ("hip", "gfx942", 64, 512, 64 * 1024),
}
MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma_\w+)")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel.

    Attributes:
        operator, kernel, target, precision: what was compiled.
        constants: its constexpr arguments, and warps.
        registers: of a thread.
        spilled: bytes a thread keeps in local memory because registers ran out.
        shared: bytes of a program.
        matrix: kinds of matrix instructions.
        dots: whether the source multiplies matrices.
    """

    operator: str
    kernel: str
    target: str
    precision: str
    constants: str
    registers: int
    spilled: int
    shared: int
    matrix: tuple[str, ...]
    dots: bool

    def faults(self) -> list[str]:
        """Return what is wrong with it, if anything."""
        *_, registers, shared = TARGETS[self.target]
        found = []
        if self.spilled:
            found.append(f"spills {self.spilled} bytes")
        if self.registers > registers:
            found.append(f"needs {self.registers} registers of {registers}")
        if self.shared > shared:
            found.append(f"needs {self.shared} bytes of shared memory of {shared}")
        if self.dots and not self.matrix:
            found.append("multiplies matrices without the matrix unit")
        return found


def compile_operator(operator: str, target: str) -> list[Compiled]:
    """Compile all kernels of an operator for a target, as its contract's pinned cases call them.

    Raises:
        RuntimeError: Triton's interpreter is on in this process, so kernels cannot be compiled.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET is 1; kernels compile only without it")
    contract = report.contract(operator)
    side = ops.compiling_side()
    found: dict[tuple[str, str, str], Compiled] = {}
    with _compiling(target) as kernels:
        for case in contract.pinned:
            contract.run(side, case, contract.inputs(case))
            for kernel in kernels:
                made = _describe(operator, target, precision_name(case), kernel)
                found.setdefault((made.kernel, made.precision, made.constants), made)
            kernels.clear()
    return list(found.values())


@contextmanager
def _compiling(target: str) -> Iterator[list[Any]]:
    """Let launches compile for a target and append the kernel instead of running it."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    backend, arch, warp_size, *_ = TARGETS[target]
    kernels: list[Any] = []

    class Driver:
        """Names the target; there is no device."""

        def get_current_target(self) -> Any:
            return GPUTarget(backend, arch, warp_size)

        def get_current_device(self) -> int:
            return list(TARGETS).index(target)

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_active_torch_device(self) -> Any:
            return torch.device("cpu")

    launch, before, hip = JITFunction.run, driver._active, torch.version.hip

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        kernels.append((self, kernel, options))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(Driver())
    torch.version.hip = "none" if backend == "hip" else None
    try:
        yield kernels
    finally:
        JITFunction.run = launch
        driver._active, torch.version.hip = before, hip


def _describe(operator: str, target: str, precision: str, launched: Any) -> Compiled:
    function, kernel, options = launched
    registers, spilled = _registers(kernel)
    text = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
    constants = {p.name: options[p.name] for p in function.params if p.is_constexpr}
    constants["warps"] = kernel.metadata.num_warps
    source = kernel.asm["ttir"]
    return Compiled(
        operator,
        function.__name__,
        target,
        precision,
        " ".join(f"{name}={value}" for name, value in constants.items()),
        registers,
        spilled,
        kernel.metadata.shared,
        tuple(sorted({m.split("_16x16")[0].split("_32x32")[0] for m in MATRIX.findall(text)})),
        "tt.dot" in source,
    )


def _registers(kernel: Any) -> tuple[int, int]:
    """Return registers and spilled bytes of a thread, as the assembler counts them."""
    if "amdgcn" in kernel.asm:
        text = kernel.asm["amdgcn"]

        def count(name: str) -> int:
            return max((int(n) for n in re.findall(rf"\.{name}:\s+(\d+)", text)), default=0)

        return count("vgpr_count"), 4 * (count("vgpr_spill_count"))
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, local = (
        int(re.search(rf"{name}:(\d+)", said)[1])  # type: ignore[index]
        for name in ("REG", "STACK", "LOCAL")
    )
    return registers, stack + local
