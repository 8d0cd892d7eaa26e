"""`twofold verify`: hold the kernels against the mathematics, and print how close they came."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from twofold.core import ops
from twofold.core.commands.common import (
    FAILED,
    choose_side,
    console,
    escaped,
    plain_errors,
    write_json,
)

LOCKSTEP, COMPILE, MUTANTS = "lockstep", "compile", "mutants"
EXAMPLES = 20
FOREIGN = 2  # so many times the examples for a function of which no case is chosen by its tiles


def command(
    operators: Annotated[
        list[str] | None,
        typer.Argument(
            help="operators to judge, all by default; or lockstep: train on both sides; "
            "or compile, and operators: compile for GPUs that need not be there; "
            "or mutants, and operators: how many small faults their contracts see; "
            "or module:function: judge your own"
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="random cases of each operator")] = EXAMPLES,
    steps: Annotated[int, typer.Option(min=1, help="of lockstep")] = 10,
    side: Annotated[str, typer.Option(help="side to judge: triton or reference")] = "triton",
    target: Annotated[
        list[str] | None, typer.Option(help="of compile: sm_80, sm_90a, sm_100a, gfx942")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="of mutants: judge so many of each operator and side", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="of mutants: names the sample")] = 0,
    op: Annotated[
        str, typer.Option("--op", help="of module:function: the operator that it should be")
    ] = "attention",
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="of module:function: float32, tf32, float16, bfloat16; all but tf32"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the result to this file")] = None,
) -> None:
    """Judge operators by their contracts: random and pinned cases, each within its error bound.

    Without a GPU the kernels run in the strict interpreter. Exit status 1 if anything fails.
    """
    with plain_errors():
        names = list(operators or ops.OPERATORS)
        foreign = [name for name in names if ":" in name]
        names = [name for name in names if ":" not in name]
        for name in names:
            if name not in (*ops.OPERATORS, LOCKSTEP, COMPILE, MUTANTS):
                known = ", ".join((*ops.OPERATORS, LOCKSTEP, COMPILE, MUTANTS))
                raise ValueError(f"operator is {name!r}; it must be one of {known}")
        result: dict[str, dict[str, object]] = {}
        if foreign:
            result = _foreign(foreign, op, examples, dtype)
        if COMPILE in names:
            chosen = [name for name in names if name in ops.OPERATORS]
            result |= _compile(chosen or list(ops.OPERATORS), target)
        if MUTANTS in names:
            chosen = [name for name in names if name in ops.OPERATORS]
            result |= _mutants(chosen or list(ops.OPERATORS), examples, sample, seed)
        if COMPILE in names or MUTANTS in names:
            names = [LOCKSTEP] if LOCKSTEP in names else []
        if names:
            result |= _judge(names, side, examples, steps)
        write_json(json, result)
    if not all(part["holds"] for part in result.values()):
        raise typer.Exit(FAILED)


def _judge(names: list[str], side: str, examples: int, steps: int) -> dict[str, dict[str, object]]:
    """Run what there is to run, without a GPU in the strict interpreter."""
    with ExitStack() as stack:
        judged = choose_side(side)
        interpreted = judged.name == "triton" and judged.device == "cpu"
        if interpreted:
            from twofold.core.verify.strict_interpreter import strict_interpreter

            stack.enter_context(strict_interpreter())
        console.print(
            f"{judged.name} side on {judged.device}"
            + (", in the strict interpreter" if interpreted else ""),
            highlight=False,
        )
        wanted = [name for name in names if name != LOCKSTEP]
        result = _operators(wanted, judged, examples) if wanted else {}
        if LOCKSTEP in names:
            result |= _lockstep(judged, steps)
    return result


def _operators(names: list[str], side: ops.Side, examples: int) -> dict[str, dict[str, object]]:
    from twofold.core.verify import report  # needs hypothesis, which only verification does

    rows = []
    for name in names:
        with console.status(f"{name} …"):
            rows += report.verify(name, side, examples)
    console.print(report.table(rows))
    faults = [(row, fault) for row in rows for fault in row.faults]
    for row, fault in faults:
        console.print(
            f"[red]FAIL[/red] {row.operator} {row.pass_} {row.precision}: {escaped(fault)}",
            highlight=False,
            soft_wrap=True,
        )
    return {"operators": {"holds": not faults, "rows": report.as_json(rows)}}


def _foreign(
    names: list[str], operator: str, examples: int, dtypes: list[str] | None
) -> dict[str, dict[str, object]]:
    """Judge functions that are not ours."""
    from twofold.core.verify import foreign, report

    result: dict[str, dict[str, object]] = {}
    for name in names:
        with console.status(f"{name} …"):
            found = foreign.judge(name, operator, FOREIGN * examples, dtypes)
        console.print(f"{name} as {operator}", highlight=False)
        console.print(report.table(found.rows))
        for note in found.notes:
            console.print(escaped(note), highlight=False, soft_wrap=True)
        for fault in found.failures:
            console.print(f"[red]FAIL[/red] {escaped(fault)}", highlight=False, soft_wrap=True)
        if found.failures and found.rows:
            console.print("(from twofold.core.verify import foreign)", highlight=False)
        result[name] = {
            "holds": not found.failures,
            "operator": operator,
            "rows": report.as_json(found.rows),
            "failures": found.failures,
            "notes": found.notes,
        }
    return result


def _lockstep(side: ops.Side, steps: int) -> dict[str, dict[str, object]]:
    from twofold.core.verify import lockstep

    config = lockstep.DEFAULT if side.device == "cuda" else lockstep.TINY
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("step", "worst/allowed", "of", "loss off by"):
        table.add_column(column, justify="left" if column == "of" else "right")

    def show(found: list[lockstep.Difference]) -> None:
        worst = max(found, key=lambda d: d.share)
        loss = next(d for d in found if d.name == "loss")
        table.add_row(str(worst.step), f"{worst.share:.3f}", worst.name, f"{loss.distance:.2e}")

    with console.status("lockstep …"):
        found = lockstep.lockstep(side, config, steps=steps, observe=show)
    console.print(table)
    worst = max(found, key=lambda d: d.share)
    holds = worst.share <= 1.0
    console.print(
        f"lockstep {'holds' if holds else '[red]FAILS[/red]'}: worst {worst.share:.3f} of what is "
        f"allowed, {worst.name} after step {worst.step}",
        highlight=False,
    )
    return {"lockstep": {"holds": holds, "differences": [d._asdict() for d in found]}}


def _compile(names: list[str], targets: list[str] | None) -> dict[str, dict[str, object]]:
    """Compile, and show what each kernel needs at most, and everything that is wrong."""
    from twofold.core.verify import compiles

    for target in targets or ():
        if target not in compiles.TARGETS:
            known = ", ".join(compiles.TARGETS)
            raise ValueError(f"--target is {target!r}; it must be one of {known}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kernel", "target", "matrix unit"):
        table.add_column(column, no_wrap=column != "matrix unit")
    for column in ("variants", "registers", "spilled", "shared"):
        table.add_column(column, justify="right")
    found: list[compiles.Compiled] = []
    for name in names:
        for target in targets or compiles.TARGETS:
            with console.status(f"{name} for {target} …"):
                made = compiles.compile_operator(name, target)
            found += made
            for kernel in dict.fromkeys(c.kernel for c in made):
                mine = [c for c in made if c.kernel == kernel]
                matrix = sorted({m for c in mine for m in c.matrix})
                largest = (max(c.registers for c in mine), max(c.spilled for c in mine))
                table.add_row(
                    f"{name} {kernel}",
                    target,
                    " ".join(matrix),
                    str(len(mine)),
                    *map(str, largest),
                    str(max(c.shared for c in mine)),
                )
    console.print(table)
    faults = [(c, fault) for c in found for fault in c.faults()]
    for c, fault in faults:
        console.print(
            f"[red]FAIL[/red] {c.operator} {c.kernel} {c.target} {c.precision}: {fault} "
            f"({escaped(c.constants)})",
            highlight=False,
            soft_wrap=True,
        )
    rows = [{**asdict(c), "faults": c.faults()} for c in found]
    return {"compile": {"holds": not faults, "kernels": rows}}


def _mutants(
    names: list[str], examples: int, sample: int | None, seed: int
) -> dict[str, dict[str, object]]:
    """Judge the mutants of both sides, and show which of them nothing saw."""
    from twofold.core.verify import mutants

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("operator", "side"):
        table.add_column(column, no_wrap=True)
    for column in ("mutants", "killed", "equivalent", "survived"):
        table.add_column(column, justify="right")
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        sides = [ops.load(name) for name in reversed(ops.SIDES)]
        from twofold.core.verify.strict_interpreter import strict_interpreter

        stack.enter_context(strict_interpreter())
        for name in names:
            for side in sides:
                found = mutants.judge(name, side, examples=examples, size=sample, seed=seed)
                counts = mutants.count(found)
                survivors = [v.mutant for v in found if v.fate == mutants.SURVIVED]
                for mutant in survivors:
                    said = f"[red]SURVIVED[/red] {escaped(f'{mutant} | {mutant.text}')}"
                    console.print(said, highlight=False, soft_wrap=True)
                shown = ("mutants", mutants.KILLED, mutants.EQUIVALENT, mutants.SURVIVED)
                table.add_row(name, side.name, *(str(counts[fate]) for fate in shown))
                listed = [{"at": str(m), "text": m.text} for m in survivors]
                rows.append({"operator": name, "side": side.name, **counts, "survivors": listed})
    console.print(table)
    return {"mutants": {"holds": not any(row["survived"] for row in rows), "operators": rows}}
