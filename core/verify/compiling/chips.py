"""The chips that kernels are compiled for: their limits, and how many programs one can hold.

NVIDIA's limits are those of the CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability" (8.0, 9.0, 10.0). Registers are allocated in units of 256 per warp; a program takes a
kilobyte more shared memory than it asks for. Tensor memory, where compute capability 10.0 keeps
accumulators, has 512 columns per multiprocessor (PTX ISA, "Tensor Memory").

AMD's are those of the "AMD Instinct MI300" (CDNA3) instruction set architecture guide and of LLVM's
AMDGPU back end for gfx942: a compute unit has four SIMDs with 512 vector registers a lane each,
accumulators included, in units of 8; up to 8 waves a SIMD, so that there are 16 work-groups of
several waves, which is also the most there may be.
"""

from __future__ import annotations

from dataclasses import dataclass

PROGRAM_THREADS = 1024  # most threads of a program, on all chips
TENSOR_COLUMNS = 512  # of a multiprocessor's tensor memory
RESERVED_SHARED = 1024  # bytes of each program's shared memory that CUDA reserves


@dataclass(frozen=True)
class Chip:
    """A multiprocessor (NVIDIA) or compute unit (AMD): the limits on what runs on it.

    Attributes:
        backend, arch: what Triton calls it.
        warp_size: threads per warp.
        thread_registers: most registers per thread.
        program_shared: most bytes of shared memory per program.
        shared: bytes of shared memory in all.
        warps, programs: most of each at a time.
    """

    backend: str
    arch: int | str
    warp_size: int
    thread_registers: int
    program_shared: int
    shared: int
    warps: int
    programs: int


# A program on sm_80 gets 163 KiB; on sm_86, sm_89 and sm_120, which use the same tiles, 99.
LEAST_SHARED = 99 * 1024

CHIPS = {
    "sm_80": Chip("cuda", 80, 32, 255, LEAST_SHARED, 164 * 1024, 64, 32),
    "sm_90a": Chip("cuda", 90, 32, 255, 227 * 1024, 228 * 1024, 64, 32),
    "sm_100a": Chip("cuda", 100, 32, 255, 227 * 1024, 228 * 1024, 64, 32),
    "gfx942": Chip("hip", "gfx942", 64, 512, 64 * 1024, 64 * 1024, 32, 32),
}


def resident(chip: Chip, registers: int, shared: int, warps: int, tensor_columns: int = 0) -> int:
    """Return how many programs a chip holds at a time, 0 if none fits.

    Args:
        registers: per thread.
        shared: bytes per program.
        warps: per program.
        tensor_columns: columns of tensor memory per program.
    """
    by_warps = min(chip.programs, chip.warps // warps)
    if chip.backend == "hip":
        a_simd = 512 // max(8, -(-registers // 8) * 8)  # waves that the registers of a SIMD hold
        by_registers = 4 * a_simd // warps
        by_shared = chip.shared // shared if shared else chip.programs
    else:
        a_warp = max(256, -(-registers * chip.warp_size // 256) * 256)
        # Each of four schedulers has a quarter of the 65536 registers for its warps.
        by_registers = 4 * (16384 // a_warp) // warps
        by_shared = chip.shared // (shared + RESERVED_SHARED)
    by_tensor = TENSOR_COLUMNS // tensor_columns if tensor_columns else chip.programs
    return min(by_warps, by_registers, by_shared, by_tensor)
