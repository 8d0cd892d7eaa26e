"""`twofold predict RUN "text" …`: what a finished run makes of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from twofold.core.commands.common import (
    choose_side,
    console,
    escaped,
    interpreted_strictly,
    plain_errors,
    write_json,
)
from twofold.core.training.run import Run, RunError
from twofold.core.training.trainer import predict


def command(
    run: Annotated[Path, typer.Argument(help="folder that `twofold train` left")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="texts; without any, lines of standard input")
    ] = None,
    side: Annotated[str, typer.Option(help="reference, triton or auto")] = "auto",
    json: Annotated[Path | None, typer.Option(help="write the result to this file")] = None,
) -> None:
    """Classify texts, given as arguments or as lines on standard input."""
    with plain_errors():
        opened = Run.open(run)
        if opened.settings.model.input != "tokens":
            raise RunError(f"{run} was trained on images; predict takes texts")
        chosen_side = choose_side(side)
        if not texts:
            content = sys.stdin.buffer.read().decode("utf-8", errors="replace")
            texts = [line for line in content.splitlines() if line.strip()]
        if not texts:
            raise ValueError("no text was given, as an argument or on standard input")
        labels = opened.settings.labels
        with interpreted_strictly(chosen_side):
            model = opened.load_model(chosen_side)
            probabilities = predict(model, opened.codec.encode(texts))
        predictions = [
            {
                "text": text,
                "label": labels[int(p.argmax())],
                "probabilities": {label: float(x) for label, x in zip(labels, p, strict=True)},
            }
            for text, p in zip(texts, probabilities, strict=True)
        ]
        for text, p in zip(texts, probabilities, strict=True):
            console.print(
                f"{escaped(labels[int(p.argmax())])}  {p.max():.3f}  {escaped(text)}",
                highlight=False,
                soft_wrap=True,
            )
        write_json(json, {"predictions": predictions})
