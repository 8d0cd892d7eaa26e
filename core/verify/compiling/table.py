"""The committed table of compiled kernels: one line each, sorted, reproducible.

It names the compilers but neither day nor machine, so that it changes only when a kernel, a tile or
a compiler does. Compilers themselves vary, rarely: from the same source and options AMD's makes one
of two binaries, depending on where its objects lie in memory. So a difference from the table is
compiled again before it is believed.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from twofold.core.verify.compiling.compiled import NONE, Compiled, Name, Share

TITLE = "What the compilers make of every kernel: twofold verify compile --table FILE"
LEGEND = (
    "regs: registers of a thread; spilled: bytes a thread spills, in brackets where the loops that",
    "multiply matrices do not; shared: bytes of a program;",
    "programs: held by a multiprocessor at a time; warps: share of its warps that these are;",
    "ld/st: most bytes of memory that a thread loads, and stores, at a time.",
)
COLUMNS = "{:43} {:7} {:8} {:>4} {:>7} {:>6} {:>8} {:>5} {:>6}  {:26} {}"
HEADER = COLUMNS.format(
    "operator kernel",
    "target",
    "dtype",
    "regs",
    "spilled",
    "shared",
    "programs",
    "warps",
    "ld/st",
    "matrix unit",
    "constants",
)


def compilers() -> str:
    """Return the versions on which every figure depends, in one line."""
    import triton
    from triton import knobs

    tools: dict[str, None] = {}
    for tool in (knobs.nvidia.ptxas, knobs.nvidia.ptxas_blackwell):
        said = subprocess.run([tool.path, "--version"], capture_output=True, text=True, check=True)
        tools[said.stdout.rpartition(", V")[2].split()[0]] = None
    return f"triton {triton.__version__}, ptxas {' and '.join(tools)}"


def lines(kernels: Iterable[Compiled]) -> list[str]:
    """Return a line for each kernel, target, precision and constants, sorted.

    If several differ only in what a line does not show, the line has the most of each figure.
    """
    return list(_lines(kernels).values())


def unlike(committed: Iterable[str], kernels: Iterable[Compiled]) -> set[Name]:
    """Return the names of kernels whose line is not in a table."""
    old = set(committed)
    return {name for name, line in _lines(kernels).items() if line not in old}


def names(lines: Iterable[str]) -> set[Name]:
    """Return the names of the kernels in lines of a table."""
    return set(map(_name, lines))


def of(
    lines: Iterable[str], operators: Collection[str], targets: Collection[str], share: Share
) -> list[str]:
    """Return the lines for kernels of these operators and targets that are in a share."""
    named = ((line, _name(line)) for line in lines)
    return [
        line
        for line, name in named
        if name[0] in operators and name[2] in targets and share.has(name)
    ]


def _name(line: str) -> Name:
    """Return the name of the kernel in a line."""
    starts = [HEADER.index(column) for column in ("target", "dtype", "regs", "constants")]
    operator, kernel = line[: starts[0]].split()
    target, precision = (line[a:b].strip() for a, b in itertools.pairwise(starts[:3]))
    return operator, kernel, target, precision, "" if kernel == NONE else line[starts[3] :]


def _lines(kernels: Iterable[Compiled]) -> dict[Name, str]:
    merged: dict[Name, Compiled] = {}
    for kernel in kernels:
        same = merged.get(kernel.name)
        merged[kernel.name] = kernel if same is None else most(same, kernel)
    return {name: _line(merged[name]) for name in sorted(merged)}


def most(first: Compiled, second: Compiled) -> Compiled:
    """Return a kernel that needs as much of everything as either."""
    return replace(
        first,
        registers=max(first.registers, second.registers),
        spilled=max(first.spilled, second.spilled),
        outside=all(kernel.outside for kernel in (first, second) if kernel.spilled),
        shared=max(first.shared, second.shared),
        tensor_columns=max(first.tensor_columns, second.tensor_columns),
        loads=max(first.loads, second.loads),
        stores=max(first.stores, second.stores),
        matrix=tuple(sorted({*first.matrix, *second.matrix})),
        failure=first.failure or second.failure,
    )


def _line(kernel: Compiled) -> str:
    name = f"{kernel.operator} {kernel.kernel}"
    if kernel.unsupported:
        blank = ("",) * 6
        how = (*blank, "unsupported", kernel.unsupported)
        return COLUMNS.format(name, kernel.target, kernel.precision, *how)
    figures = (
        ("does", "not", "compile", "", "", "", "")
        if kernel.failure
        else (
            kernel.registers,
            f"({kernel.spilled})" if kernel.spilled and kernel.outside else kernel.spilled,
            kernel.shared,
            kernel.programs,
            f"{kernel.occupancy:.0%}",
            f"{kernel.loads}/{kernel.stores}",
            " ".join(kernel.matrix) or "-",
        )
    )
    return COLUMNS.format(name, kernel.target, kernel.precision, *figures, kernel.constants)


def write(path: Path, kernels: Iterable[Compiled]) -> None:
    """Write the table."""
    head = (TITLE, compilers(), *LEGEND, "", HEADER)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((*head, *lines(kernels))) + "\n")


def read(path: Path) -> tuple[str, list[str]]:
    """Return the compilers that a table names, and its lines.

    Raises:
        ValueError: the file is not such a table.
    """
    text = path.read_text().splitlines()
    if text[:1] != [TITLE] or HEADER not in text:
        raise ValueError(f"{path} is no table of compiled kernels")
    return text[1], text[text.index(HEADER) + 1 :]


def differences(committed: Iterable[str], kernels: Iterable[Compiled]) -> list[str]:
    """Return the lines that differ, "-" before a committed and "+" before a compiled one."""
    old, new = set(committed), set(lines(kernels))
    differing = [f"- {x}" for x in old - new] + [f"+ {x}" for x in new - old]
    start = len(HEADER.partition("constants")[0])
    return sorted(differing, key=lambda x: (x.split()[1:5], x[start:], x[0] == "+"))
