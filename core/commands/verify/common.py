"""What the commands of `twofold verify` share: names of operators, the interpreter, the side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from twofold.core import ops
from twofold.core.commands.common import (
    choose_side,
    console,
    escaped,
    interpreted_strictly,
    plain_errors,
)

EXAMPLES = 20

Examples = Annotated[int, typer.Option(min=0, help="random cases of each operator")]
SideName = Annotated[str, typer.Option("--side", help="side to judge: triton or reference")]
Jobs = Annotated[int | None, typer.Option(min=1, help="processes; one per core by default")]


class Listing(TyperCommand):
    """A command whose help ends with the calls that functions are judged as."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then every operator's call."""
        super().format_help(ctx, formatter)
        list_calls()


def list_calls() -> None:
    """Print the operators that a function may be judged as, with the calls of each."""
    with plain_errors():
        from twofold.core.verify.foreign.signatures import ALSO, calls

    console.print(
        "The calls recognised for each --op (options may be missing, and every output but the"
    )
    console.print("first):")
    for operator, call, others in calls():
        console.print(
            f"  [bold]{operator}[/bold]: {escaped(call)}", highlight=False, soft_wrap=True
        )
        for other in others:
            console.print(f"    or {escaped(other)}", highlight=False, soft_wrap=True)
    console.print(ALSO, highlight=False)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chosen(operators: list[str] | None) -> list[str]:
    """Return the operators named, or all if none is.

    Raises:
        ValueError: a name is not an operator's.
    """
    names = list(operators or ops.OPERATORS)
    for name in names:
        ops.check_operator("operator", name)
    return names


def left(names: list[str]) -> dict[str, list[str]]:
    """Return what a result that is written meanwhile says of those that are not yet judged."""
    return {"left": names} if names else {}


@contextmanager
def judged_side(name: str) -> Iterator[ops.Side]:
    """Give a side, in the strict interpreter if its kernels are interpreted, and print which."""
    side = choose_side(name)
    where = ", in the strict interpreter" if (side.name, side.device) == ("triton", "cpu") else ""
    console.print(f"{side.name} side on {side.device}{where}", highlight=False)
    with interpreted_strictly(side):
        yield side
