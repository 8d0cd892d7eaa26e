"""`twofold verify properties`: claims that need no reference, at any size."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import typer
from rich.table import Table

from twofold.core.commands import options
from twofold.core.commands.common import FAILED, Json, console, escaped, plain_errors, write_json
from twofold.core.commands.verify.common import SideName, chosen, judged_side, left

DRAWN = 3


def command(
    operators: options.Operators = None,
    at: Annotated[
        list[str] | None,
        typer.Option(help="a field of the case, such as seqlen_k=4096; for one operator"),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="random cases, if there is no --at")] = DRAWN,
    side: SideName = "triton",
    json: Json = None,
) -> None:
    """Check properties of any correct implementation: permutations, parts that merge, slopes.

    No reference is computed, so --at may set sizes at which none could be. Every property is
    checked on every case. The result is written after every property, and names those that are
    left.
    """
    with plain_errors():
        names = chosen(operators)
        if at and len(names) != 1:
            raise ValueError("--at is a field of one operator's case; name one operator")
        from twofold.core.verify import report
        from twofold.core.verify.contract import check_properties, fitting, subject
        from twofold.core.verify.search import drawn

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("operator", "property", "cases", "seconds", ""):
            table.add_column(column, justify="right" if column in ("cases", "seconds") else "left")
        claims = [(name, claim) for name in names for claim in report.contract(name).claims()]
        rows: list[dict[str, Any]] = []
        with judged_side(side) as judged:
            for operator in names:
                contract = report.contract(operator)
                cases = [_case(contract, at)] if at else drawn(contract, examples)
                cases = [fitting(judged, case) for case in cases]
                cases = cases if at else [contract.of_properties(case) for case in cases]
                for name in contract.claims():
                    start = time.perf_counter()
                    with console.status(f"{operator}: {name} …"):
                        one = subject(contract, judged)
                        asked = (check_properties(contract, one, case, [name]) for case in cases)
                        found = [finding for findings in asked for finding in findings]
                    faults = [f"{f.fault}\n  {f.case}" for f in found if f.fault]
                    seconds = time.perf_counter() - start
                    verdict = "[red]fails[/red]" if faults else "holds" if found else "no such case"
                    table.add_row(operator, name, str(len(found)), f"{seconds:.1f}", verdict)
                    row: dict[str, Any] = {"operator": operator, "property": name}
                    rows.append({**row, "cases": len(found), "faults": faults})
                    holds = not any(row["faults"] for row in rows)
                    rest = left([f"{of}: {claim}" for of, claim in claims[len(rows) :]])
                    write_json(json, {"properties": {"holds": holds, "rows": rows, **rest}})
        console.print(table)
        for row in rows:
            for fault in row["faults"]:
                said = f"[red]FAIL[/red] {row['operator']} {escaped(fault)}"
                console.print(said, highlight=False, soft_wrap=True)
    if any(row["faults"] for row in rows):
        raise typer.Exit(FAILED)


def _case(contract: Any, fields: list[str]) -> Any:
    """Return the case with these fields, each of its default's type."""
    default = type(contract.pinned[0])()
    known = vars(default)
    values: dict[str, Any] = {}
    for field in fields:
        name, separator, text = field.partition("=")
        if not separator or name not in known:
            names = ", ".join(known)
            raise ValueError(f"--at is {field!r}; it must be name=value, name one of {names}")
        values[name] = _parsed(field, text, known[name])
    return dataclasses.replace(default, **values)


def _parsed(field: str, text: str, default: Any) -> Any:
    """Return a value parsed as its default's type; "None" is None."""
    if text == "None":
        return None
    kind: Any = str if default is None else type(default)
    try:
        if kind is bool:
            return {"True": True, "False": False}[text]
        value = kind(text)
        if kind is int and value < 0:
            raise ValueError("no size is negative")
        return value
    except (KeyError, ValueError) as error:
        more = " and at least 0" if kind is int else ""
        wanted = "True or False" if kind is bool else f"of type {kind.__name__}{more}"
        raise ValueError(f"--at is {field!r}; the value must be {wanted}") from error
