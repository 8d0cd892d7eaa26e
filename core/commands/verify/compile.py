"""`twofold verify compile`: every kernel compiled for several GPUs, none of which is needed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from twofold.core.commands import options
from twofold.core.commands.common import (
    FAILED,
    INTERRUPTED,
    Json,
    console,
    escaped,
    plain_errors,
    write_json,
)
from twofold.core.commands.verify.common import Jobs, chosen, cores
from twofold.core.verify.compiling.compiled import Compiled, Share

AGAIN, FEW = 4, 50  # times that differing kernels are compiled again, if they are at most so many
LINE = "{:43} {:8} {:>8} {:>9} {:>7} {:>7} {:>8} {:>5}  {}"


def command(
    operators: options.Operators = None,
    target: Annotated[
        list[str] | None, typer.Option(help="sm_80, sm_90a, sm_100a or gfx942; all by default")
    ] = None,
    jobs: Jobs = None,
    table: Annotated[
        Path | None, typer.Option(help="write every kernel's figures to this file")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="fail if the figures differ from those in this file")
    ] = None,
    one_in: Annotated[int, typer.Option(help="compile only one kernel in this many", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="which of them; successive seeds: other kernels")] = 0,
    json: Json = None,
) -> None:
    """Compile every kernel for GPUs that need not be present; show resources and all faults.

    A line shows the most that any variant of a kernel needs, and the fewest programs and warps that
    fit on a multiprocessor.
    """
    with plain_errors():
        names = chosen(operators)
        from twofold.core.verify.compiling import jobs as compile_jobs
        from twofold.core.verify.compiling import table as compiled_table
        from twofold.core.verify.compiling.chips import CHIPS

        for name in target or ():
            if name not in CHIPS:
                raise ValueError(f"--target is {name!r}; it must be one of {', '.join(CHIPS)}")
        targets = [name for name in CHIPS if not target or name in target]
        committed = None if check is None else compiled_table.read(check)
        share = Share(one_in, seed)
        found: list[Compiled] = []
        seconds = 0.0
        heads = ("kernel", "target", "variants", "registers", "spilled", "shared", "programs")
        console.print(f"[bold]{LINE.format(*heads, 'warps', 'matrix unit')}[/bold]", soft_wrap=True)
        running = compile_jobs.compile_all(names, targets, jobs or cores(), share)
        try:
            with console.status("compiling …"):
                for made, used in running:
                    found += made
                    seconds += used
                    for kernel in dict.fromkeys(c.kernel for c in made):
                        _show([c for c in made if c.kernel == kernel])
        except KeyboardInterrupt:
            console.print("interrupted; what is above is complete", highlight=False)
            raise typer.Exit(INTERRUPTED) from None
        differing: list[str] = []
        if committed is not None:
            version, lines = committed
            lines = compiled_table.of(lines, names, targets, share)
            if version == compiled_table.compilers():
                found, used = settled(found, lines, names, targets, jobs or cores())
                seconds += used
                differing = compiled_table.differences(lines, found)
            else:
                console.print(
                    f"{check} was made with {version}; here is {compiled_table.compilers()}: "
                    "only what is wrong was looked for, no figures compared",
                    highlight=False,
                    soft_wrap=True,
                )
        faults = [(c, fault) for c in found for fault in c.faults()]
        kernels = [c for c in found if not c.unsupported]
        for line in differing:
            console.print(escaped(line), highlight=False, soft_wrap=True)
        if differing:
            console.print(
                f"[red]FAIL[/red] {check} is not what was compiled (-: there, +: here); "
                f"twofold verify compile --table {check} writes it",
                highlight=False,
                soft_wrap=True,
            )
        console.print(
            f"{len(kernels)} kernels, {len(faults)} faults, {seconds:.0f} s of processor time",
            highlight=False,
        )
        if table is not None:
            compiled_table.write(table, found)
        rows = [
            {**asdict(c), "programs": c.programs, "occupancy": c.occupancy, "faults": c.faults()}
            for c in found
        ]
        holds = not faults and not differing
        write_json(json, {"compile": {"holds": holds, "differences": differing, "kernels": rows}})
    if not holds:
        raise typer.Exit(FAILED)


def settled(
    found: list[Compiled], lines: list[str], operators: list[str], targets: list[str], jobs: int
) -> tuple[list[Compiled], float]:
    """Compile kernels that differ from a table's lines again; return all, and the time it took."""
    from twofold.core.verify.compiling import jobs as compile_jobs
    from twofold.core.verify.compiling import table as compiled_table

    seconds = 0.0
    for _ in range(AGAIN):
        unlike = compiled_table.unlike(lines, found)
        if not 0 < len(unlike) <= FEW:
            break
        for made, used in compile_jobs.compile_all(operators, targets, jobs, only=unlike):
            anew = {c.name for c in made}
            found = [c for c in found if c.name not in anew] + made
            seconds += used
        for name in sorted(unlike - compiled_table.unlike(lines, found)):
            console.print(
                f"{escaped(' '.join(name))}: like the file's when compiled again (compilers waver)",
                highlight=False,
                soft_wrap=True,
            )
    return found, seconds


def _show(kernels: list[Compiled]) -> None:
    """Print the most that the variants of one kernel need, and the faults of each."""
    if why := kernels[0].unsupported:
        line = f"{kernels[0].operator:43} {kernels[0].target:8} unsupported: {escaped(why)}"
        console.print(line, highlight=False, soft_wrap=True)
        return
    figures = (
        max(c.registers for c in kernels),
        max(c.spilled for c in kernels),
        max(c.shared for c in kernels),
        min(c.programs for c in kernels),
        f"{min(c.occupancy for c in kernels):.0%}",
    )
    matrix = " ".join(sorted({m for c in kernels for m in c.matrix}))
    name = f"{kernels[0].operator} {kernels[0].kernel}"
    line = LINE.format(name, kernels[0].target, len(kernels), *figures, matrix)
    console.print(line, highlight=False, soft_wrap=True)
    for c in kernels:
        for fault in c.faults():
            console.print(
                f"[red]FAIL[/red] {name} {c.target} {c.precision}: {escaped(fault)} "
                f"({escaped(c.constants)})",
                highlight=False,
                soft_wrap=True,
            )
