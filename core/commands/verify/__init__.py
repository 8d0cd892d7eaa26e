"""`twofold verify`: the checks of kernels against the mathematics, one command each.

Without a command's name, `operators` is run, or `function` if a module:function is named.
"""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperGroup

from twofold.core.commands.verify import (
    common,
    compile,
    function,
    lockstep,
    mutants,
    operators,
    peers,
    properties,
    tightness,
)

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class WithDefault(TyperGroup):
    """A group of commands with defaults, run if no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the command's name if it is left out."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            named = any(FUNCTION.fullmatch(arg) for arg in args)
            args = ["function" if named else "operators", *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then the calls that functions are judged as."""
        super().format_help(ctx, formatter)
        common.list_calls()


app = typer.Typer(
    cls=WithDefault,
    no_args_is_help=False,
    help=(
        "Check kernels, or your own functions, against the mathematics. "
        "`twofold verify [OPERATOR…]` is `verify operators`, "
        "`twofold verify module:function` is `verify function`. Exit status 1 if anything fails."
    ),
)
app.command("operators")(operators.command)
app.command("function", cls=common.Listing)(function.command)
app.command("lockstep")(lockstep.command)
app.command("compile")(compile.command)
app.command("mutants")(mutants.command)
app.command("properties")(properties.command)
app.command("tightness")(tightness.command)
app.command("peers")(peers.command)
