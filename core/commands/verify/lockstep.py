"""`twofold verify lockstep`: both sides trained from one seed, and compared after every step."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from twofold.core.commands.common import FAILED, Json, console, plain_errors, write_json
from twofold.core.commands.verify.common import SideName, judged_side


def command(
    steps: Annotated[int, typer.Option(min=1, help="steps of training")] = 10,
    side: SideName = "triton",
    json: Json = None,
) -> None:
    """Train a side and the reference from the same seed; compare them after every step."""
    with plain_errors():
        from twofold.core.verify import lockstep

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("step", "worst/allowed", "of", "loss off by"):
            table.add_column(column, justify="left" if column == "of" else "right")

        def show(found: list[lockstep.Difference]) -> None:
            worst = max(found, key=lambda d: d.share)
            loss = next(d for d in found if d.name == "loss")
            table.add_row(str(worst.step), f"{worst.share:.3f}", worst.name, f"{loss.distance:.2e}")

        with judged_side(side) as judged, console.status("lockstep …"):
            config = lockstep.DEFAULT if judged.device == "cuda" else lockstep.TINY
            found = lockstep.lockstep(judged, config, steps=steps, observe=show)
        console.print(table)
        worst = max(found, key=lambda d: d.share)
        holds = worst.share <= 1.0
        console.print(
            f"lockstep {'holds' if holds else '[red]FAILS[/red]'}: worst {worst.share:.3f} of what "
            f"is allowed, {worst.name} after step {worst.step}",
            highlight=False,
        )
        differences = [d._asdict() for d in found]
        write_json(json, {"lockstep": {"holds": holds, "differences": differences}})
    if not holds:
        raise typer.Exit(FAILED)
