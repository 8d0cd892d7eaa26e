"""The command line: `twofold train | finetune | evaluate | predict | embed | verify | bench`."""

from __future__ import annotations

import io
import sys

import typer

from twofold.core import memory
from twofold.core.commands import bench, embed, evaluate, finetune, predict, train, verify

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Operators of a Transformer, twice: as mathematics in NumPy and as fused Triton kernels.",
)
app.command("train")(train.command)
app.command("finetune")(finetune.command)
app.command("evaluate")(evaluate.command)
app.command("predict")(predict.command)
app.command("embed")(embed.command)
app.command("bench")(bench.command)
app.add_typer(verify.app, name="verify")


def main() -> None:
    """Run the command line."""
    memory.keep_freed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if the parent process has closed it
            stream.reconfigure(errors="backslashreplace")  # no encoding error ends a run
    app()
