"""Which units a kernel's loop keeps busy, counted in its machine code, and the resulting ceiling.

A kernel is disassembled; a long call spends its time in the innermost loop that multiplies
matrices. Each instruction of the loop occupies a unit of the multiprocessor for a known time; the
loop cannot be faster than the unit occupied longest, however well work is overlapped.

Not in the model: latencies, barriers, memory beyond the multiprocessor, what lies outside the loop,
clocks that fall under the power limit. So these are ceilings, not measured times.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# What a multiprocessor of compute capability 9.0 does per clock, in operations of threads unless
# stated otherwise. Matrix: the H100 data sheet's 989 TFLOP/s of 132 multiprocessors at 1.83 GHz.
# Threads' instructions: CUDA C++ Programming Guide, "Arithmetic Instructions", table of
# throughputs. Shared memory: 32 banks of 4 bytes.
RATES: Mapping[str, float] = {
    "matrix": 4096.0,  # operations, two for a multiply-add
    "special": 16.0,  # exp2, reciprocals, logarithms
    "shuffle": 32.0,
    "float": 128.0,  # sums and products of float32
    "other": 64.0,  # maxima, comparisons, choices, conversions, integers
    "shared": 128.0,  # bytes
    "issue": 128.0,  # instructions of any kind: one warp's on each of four schedulers
}
# mma.sync reaches this share of wgmma's rate: Luo et al. 2024, "Benchmarking and Dissecting the
# Nvidia Hopper GPU Architecture" (arXiv 2402.13499). No ceiling of attention depends on it: where
# mma.sync is used, shared memory is busy for longer.
SYNCHRONOUS = 0.629
WARP, WARPGROUP = 32, 128  # threads

LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([^;]+?)\s*;")
LABEL = re.compile(r"^(\.L_\w+):")
TARGET = re.compile(r"^BRA\b.*`\((\.L_\w+)\)")
GROUP_PRODUCT = re.compile(r"^HGMMA\.(\d+)x(\d+)x(\d+)\.\S+ R\d+, (R|gdesc)")
WARP_PRODUCT = re.compile(r"^HMMA\.(16)(8)(16|8)\.")
# Bytes per thread: matrices of 8 by 8 two-byte numbers, or words.
MATRICES = re.compile(r"^(?:LDSM|STSM)\.\S*88(?:\.(\d))?")
WORDS = re.compile(r"^(LDS|STS|LDGSTS|LDG)\b\S*")
KINDS = {
    "MUFU": "special",
    "SHFL": "shuffle",
    **dict.fromkeys(("FADD", "FMUL", "FFMA"), "float"),
    **dict.fromkeys(
        ("FMNMX FSETP FSEL F2FP F2F F2I I2F I2FP IADD3 VIADD IMAD ISETP SEL LOP3 LEA SHF SGXT PRMT "
        "MOV VIMNMX IMNMX IABS CS2R PLOP3 P2R R2P").split(),
        "other",
    ),
}  # fmt: skip


@dataclass
class Loop:
    """One trip of a warp through a loop.

    Attributes:
        instructions: how often each opcode, without modifiers, occurs.
        exponentials: MUFU.EX2 among them.
        operations: those of matrix products, per thread: a warp's divided by 32.
        synchronous: those of them that mma.sync does.
        shared: bytes that the matrix unit and the threads move to and from shared memory, per
            thread.
        copied: bytes that a thread brings from memory.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    exponentials: int = 0
    operations: float = 0.0
    synchronous: float = 0.0
    shared: float = 0.0
    copied: float = 0.0

    def clocks(self, threads: int) -> dict[str, float]:
        """Return for how long a trip of so many threads occupies each unit of a multiprocessor."""
        work = dict.fromkeys(RATES, 0.0)
        for opcode, times in self.instructions.items():
            work["issue"] += times
            if opcode in KINDS:
                work[KINDS[opcode]] += times
        work["shared"] = self.shared
        work["matrix"] = self.operations + self.synchronous * (1 / SYNCHRONOUS - 1)
        return {unit: threads * work[unit] / rate for unit, rate in RATES.items()}


@dataclass(frozen=True)
class Ceiling:
    """The shares of the matrix unit's peak that a loop cannot pass.

    Attributes:
        apart: if products and everything else take turns.
        together: if all units work at the same time.
        limit: the unit that is then occupied longest.
    """

    apart: float
    together: float
    limit: str


def ceiling(clocks: Mapping[str, float], needed: float) -> Ceiling:
    """Return the ceiling of a trip that occupies units for `clocks`, with `needed` operations."""
    products = max(clocks["matrix"], clocks["shared"])
    rest = max(t for unit, t in clocks.items() if unit not in ("matrix", "shared"))
    limit = max(clocks, key=clocks.__getitem__)
    least = needed / RATES["matrix"]
    return Ceiling(least / (products + rest), least / clocks[limit], limit)


def loops(listing: str) -> list[Loop]:
    """Return the innermost loops of a disassembled kernel that multiply matrices, in order."""
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(code)
        elif instruction := LINE.match(line):
            code.append(instruction[1])
    spans = [
        (labels[target[1]], i)
        for i, line in enumerate(code)
        if (target := TARGET.match(line)) and labels.get(target[1], i + 1) <= i
    ]
    multiplying = [s for s in spans if any(_product(x) for x in code[s[0] : s[1] + 1])]
    return [
        count(code[first : last + 1])
        for first, last in sorted(multiplying)
        if not any(first <= f and g <= last and (f, g) != (first, last) for f, g in multiplying)
    ]


def spills_in_loops(listing: str) -> bool:
    """Return whether a disassembled kernel that spills does so where it spends its time.

    That is in a loop that multiplies matrices, or anywhere if there is no such loop.
    """
    found = [x for x in loops(listing) if not x.instructions["EXIT"]]  # otherwise it is no loop
    return not found or any(x.instructions["LDL"] + x.instructions["STL"] for x in found)


def count(code: Iterable[str]) -> Loop:
    """Count the instructions that one warp executes, ignoring predicates."""
    found = Loop()
    for line in code:
        found.instructions[re.split(r"[.\s]", line, maxsplit=1)[0]] += 1
        found.exponentials += line.startswith("MUFU.EX2")
        if group := GROUP_PRODUCT.match(line):
            M, N, K = (int(group[i]) for i in (1, 2, 3))
            found.operations += 2 * M * N * K / WARPGROUP
            # Both operands are read from shared memory, unless the first is in registers.
            rows = N + (M if group[4] == "gdesc" else 0)
            found.shared += rows * K * 2 / WARPGROUP
        elif warp := WARP_PRODUCT.match(line):
            M, N, K = (int(warp[i]) for i in (1, 2, 3))
            found.operations += 2 * M * N * K / WARP
            found.synchronous += 2 * M * N * K / WARP
        elif matrices := MATRICES.match(line):
            found.shared += 128 * int(matrices[1] or 1) / WARP
        elif words := WORDS.match(line):
            size = 16 if ".128" in words[0] else 8 if ".64" in words[0] else 4
            found.shared += size if words[1] != "LDG" else 0
            found.copied += size if words[1].startswith("LDG") else 0
    return found


def _product(line: str) -> bool:
    return line.startswith(("HGMMA.", "HMMA."))


def disassembler() -> Path | None:
    """Return the disassembler that Triton comes with, None if it comes without."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return tool if tool.exists() else None


def disassemble(binary: bytes) -> str:
    """Return the listing of a compiled kernel, with labels.

    Raises:
        FileNotFoundError: Triton came without a disassembler.
    """
    tool = disassembler()
    if tool is None:
        raise FileNotFoundError("this Triton has no nvdisasm; one from CUDA must lie beside ptxas")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
    return done.stdout
