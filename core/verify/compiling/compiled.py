"""What a compiler made of a kernel, and what is wrong with it.

Registers are counted by the assembler. What it keeps on a thread's stack need not be a spill (the
slow path of a math library function has a frame, too): if there is a frame, the assembler runs once
more to say how much of it is spills, and the machine code shows whether those are in a loop that
multiplies matrices. Before and after such a loop they cost next to nothing.
"""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
import zlib
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twofold.core.verify.compiling import machine_code
from twofold.core.verify.compiling.chips import CHIPS, PROGRAM_THREADS, Chip, resident

# Instructions that multiply matrices, and the type of their operands.
MATRIX = {
    "mma": re.compile(r"\bmma\.sync\.\S+\.row\.col\.\w+\.(\w+)\."),
    "wgmma": re.compile(r"\bwgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+\.f\d+\.(\w+)\."),
    "tcgen05": re.compile(r"\btcgen05\.mma\.\S*kind::(\w+)"),
    "mfma": re.compile(r"\bv_mfma_f32_\d+x\d+x\d+_?(?:\d+b_)?(\w+)"),
}
# How many bytes a thread loads or stores at a time: elements of so many bits, or so many words.
NVIDIA_ACCESS = re.compile(r"\b(ld|st)\.(?:\w+\.)*global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s")
NVIDIA_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\b[^;]*?\], *(0x[0-9a-f]+|\d+)")
AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_(dword|short|byte|ushort|ubyte)x?(\d?)")
AMD_BYTES = {"dword": 4, "short": 2, "ushort": 2, "byte": 1, "ubyte": 1}
# A product left to the threads' multiply-adds has the layout of a tile in plain registers.
WITHOUT_MATRIX_UNIT = re.compile(r"\btt\.dot .*-> tensor<[^>]*#blocked\d*>")
# Products taken by wgmma no longer have the name tt.dot by then: these rows went to mma.sync.
SYNCHRONOUS = re.compile(r"\btt\.dot .*: tensor<\w*xb?f16\b.*-> tensor<(\d+)x")
GROUP_ROWS = 64  # of a product that wgmma takes
# By kernel and target: what spills in its loop, with any compiler, and was measured to be faster
# than what does not (ATTENTION.md).
SPILLS_AND_IS_FAST = {
    ("dk_dv_kernel", "sm_90a"): (
        "BLOCK_M=32 BLOCK_N=64 BLOCK_D=128 CHUNK_D=128 num_warps=4",
        "BLOCK_M=32 BLOCK_N=64 BLOCK_D=256 CHUNK_D=256 num_warps=8",
    ),
}


# Operator, kernel, target, precision and constants.
Name = tuple[str, str, str, str, str]
NONE = "-"  # kernel and precision of what a target does not support


@dataclass(frozen=True)
class Share:
    """One kernel in so many, chosen by name: all shares together are all kernels.

    Attributes:
        of: how many shares there are, at least 1.
        number: which of them, modulo `of`.
    """

    of: int = 1
    number: int = 0

    def has(self, name: Name) -> bool:
        """Return whether a kernel is in the share; what a target does not support is in all."""
        mixed = zlib.crc32(" ".join(name).encode())
        return name[1] == NONE or mixed % self.of == self.number % self.of


ALL = Share()


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel.

    Attributes:
        operator, kernel, target, precision: what was compiled.
        constants: its constexpr arguments (flags by name where they are set), warps and stages.
        warps: per program.
        registers: per thread.
        spilled: bytes a thread keeps in local memory because registers ran out.
        outside: whether it spills only outside of the loops that multiply matrices.
        shared: bytes per program.
        tensor_columns: columns of tensor memory per program.
        matrix: kinds of matrix instructions.
        dots: whether the source multiplies matrices.
        loads, stores: most bytes that a thread loads or stores at a time.
        plain_dots: products that do not use the matrix unit.
        synchronous_dots: 16-bit products on Hopper that should use wgmma, and do not.
        failure: why it did not compile, "" if it did.
        unsupported: why the target has no kernels of the operator, "" if it has; if it has none,
            there are no figures.
    """

    operator: str
    kernel: str
    target: str
    precision: str
    constants: str
    warps: int = 0
    registers: int = 0
    spilled: int = 0
    outside: bool = False
    shared: int = 0
    tensor_columns: int = 0
    matrix: tuple[str, ...] = ()
    dots: bool = False
    plain_dots: int = 0
    synchronous_dots: int = 0
    loads: int = 0
    stores: int = 0
    failure: str = ""
    unsupported: str = ""

    @property
    def name(self) -> Name:
        """What was compiled."""
        return (self.operator, self.kernel, self.target, self.precision, self.constants)

    @property
    def programs(self) -> int:
        """How many programs a multiprocessor holds at a time."""
        if self.failure or self.unsupported:
            return 0
        return resident(
            CHIPS[self.target], self.registers, self.shared, self.warps, self.tensor_columns
        )

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's warps that these programs fill."""
        return self.programs * self.warps / CHIPS[self.target].warps

    def faults(self) -> list[str]:
        """Return what is wrong with the kernel, if anything."""
        if self.failure:
            return [f"does not compile: {self.failure}"]
        if self.unsupported:
            return []
        chip = CHIPS[self.target]
        threads = self.warps * chip.warp_size
        found = []
        fast = SPILLS_AND_IS_FAST.get((self.kernel, self.target), ())
        if self.spilled and not self.outside and not any(x in self.constants for x in fast):
            found.append(f"spills {self.spilled} bytes")
        if self.registers > chip.thread_registers:
            found.append(f"needs {self.registers} registers of {chip.thread_registers}")
        if self.shared > chip.program_shared:
            found.append(f"needs {self.shared} bytes of shared memory of {chip.program_shared}")
        if threads > PROGRAM_THREADS:
            found.append(f"needs {threads} threads of {PROGRAM_THREADS}")
        elif not found and not self.programs:
            found.append("does not fit: no program of it is resident")
        if self.plain_dots or (self.dots and not self.matrix):
            found.append("multiplies matrices without the matrix unit")
        if self.synchronous_dots:
            found.append(f"multiplies {GROUP_ROWS} rows or more without wgmma")
        return found


def gpu_target(chip: Chip) -> Any:
    """Return the chip as Triton's target."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget(chip.backend, chip.arch, chip.warp_size)


def describe(name: Compiled, kernel: Any) -> Compiled:
    """Return `name` with what the compiled kernel says of itself."""
    chip = CHIPS[name.target]
    if chip.backend == "hip":
        text = kernel.asm["amdgcn"]
        registers, spilled = (_count(text, x) for x in ("vgpr_count", "vgpr_spill_count"))
        spilled, inside = spilled * 4, True
    else:
        text = kernel.asm["ptx"]
        registers, frame = _resources(kernel)
        # A frame may hold other things than spills; only the assembler tells them apart.
        spilled = _spilled(kernel, chip) if frame else 0
        tool = machine_code.disassembler() if spilled else None
        inside = not tool or machine_code.spills_in_loops(
            machine_code.disassemble(kernel.asm["cubin"])
        )
    loads, stores = widths(text)
    source = kernel.asm.get("ttir") or kernel.asm["ttgir"]  # Gluon begins with the latter
    return replace(
        name,
        warps=kernel.metadata.num_warps,
        registers=registers,
        spilled=spilled,
        outside=not inside,
        shared=kernel.metadata.shared,
        tensor_columns=getattr(kernel.metadata, "tmem_size", None) or 0,
        matrix=tuple(
            sorted(
                {f"{unit}.{x}" for unit, pattern in MATRIX.items() for x in pattern.findall(text)}
            )
        ),
        loads=loads,
        stores=stores,
        dots="tt.dot" in source or "warp_group_dot" in source,
        plain_dots=len(WITHOUT_MATRIX_UNIT.findall(kernel.asm["ttgir"])),
        synchronous_dots=sum(
            chip.arch == 90 and int(rows) >= GROUP_ROWS
            for rows in SYNCHRONOUS.findall(kernel.asm["ttgir"])
        ),
    )


def widths(assembly: str) -> tuple[int, int]:
    """Return the most bytes that a thread loads, and stores, at a time."""
    found = {"l": [0], "s": [0]}
    for how, vector, bits in NVIDIA_ACCESS.findall(assembly):
        found[how[0]].append(int(vector or 1) * int(bits) // 8)
    found["l"] += [int(size, 0) for size in NVIDIA_COPY.findall(assembly)]
    for how, unit, count in AMD_ACCESS.findall(assembly):
        found[how[0]].append(AMD_BYTES[unit] * int(count or 1))
    return max(found["l"]), max(found["s"])


def _count(amdgcn: str, name: str) -> int:
    return max((int(n) for n in re.findall(rf"\.{name}:\s+(\d+)", amdgcn)), default=0)


def _resources(kernel: Any) -> tuple[int, int]:
    """Return a thread's registers and bytes of local memory, as the binary states them."""
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


def _spilled(kernel: Any, chip: Chip) -> int:
    """Return the bytes that a thread spills, as the assembler says when run once more."""
    from triton import knobs
    from triton.compiler.compiler import make_backend

    said = io.StringIO()
    before = knobs.nvidia.dump_ptxas_log
    knobs.nvidia.dump_ptxas_log = True
    try:
        with redirect_stdout(said):
            make_backend(gpu_target(chip)).make_cubin(
                kernel.asm["ptx"], {}, kernel.metadata, chip.arch
            )
    finally:
        knobs.nvidia.dump_ptxas_log = before
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said.getvalue())
    return max(map(int, spills))
