"""`twofold embed "text" …`: sentence embeddings, and how similar texts are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits

from twofold.core import pretrained
from twofold.core.commands import options
from twofold.core.commands.common import (
    Json,
    check_file,
    choose_side,
    console,
    interpreted_strictly,
    kept,
    plain_errors,
    visible,
    write_file,
    write_json,
)
from twofold.core.commands.lines import Texts, texts_given

MOST = 12  # texts whose similarities are shown


def command(
    texts: Texts = None,
    model: options.Pretrained = "minilm",
    out: Annotated[
        Path | None, typer.Option(help="write the vectors to this .npy file, a row per text")
    ] = None,
    side: options.Side = "auto",
    json: Json = None,
) -> None:
    """Embed texts as unit vectors whose dot products say how near their meanings are."""
    with plain_errors():
        check_file("--out", out)
        if out is not None and out.suffix != ".npy":
            raise ValueError(f"--out is {str(out)!r}; it must end with .npy")
        chosen_side = choose_side(side)
        done: list[tuple[list[str], Any]] = []  # texts and their vectors, in order

        def write() -> None:
            if done:
                _write(model, out, json, *_joined(done))

        with interpreted_strictly(chosen_side), threadpool_limits(1, "blas"):
            bert = pretrained.load(model, ops=chosen_side)
            with kept(write):
                for lot in texts_given(texts):
                    done.append((lot, bert.embed(lot)))
        given, vectors = _joined(done)
        if len(given) <= MOST:
            console.print(_similarities(given, vectors @ vectors.T))
        console.print(f"{vectors.shape[0]} texts, {vectors.shape[1]} numbers each", highlight=False)


def _joined(done: list[tuple[list[str], Any]]) -> tuple[list[str], Any]:
    return [text for lot, _ in done for text in lot], np.concatenate([x for _, x in done])


def _write(model: str, out: Path | None, json: Path | None, texts: list[str], vectors: Any) -> None:
    """Write the vectors so far, a row for each text."""
    if out is not None:
        saved = io.BytesIO()
        np.save(saved, vectors)
        write_file("--out", out, saved.getvalue())
    if json is not None:  # as lists, vectors take twelve times the memory
        pairs = zip(texts, vectors.tolist(), strict=True)
        rows = [{"text": text, "vector": vector} for text, vector in pairs]
        write_json(json, {"model": model, "embeddings": rows})


def _similarities(texts: list[str], cosines: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("", "cosine to", *(str(n + 1) for n in range(len(texts)))):
        table.add_column(header, justify="left" if header == "cosine to" else "right")
    for n, (text, row) in enumerate(zip(texts, cosines, strict=True), start=1):
        table.add_row(str(n), Text(visible(text)), *(f"{c:.2f}" for c in row))
    return table
