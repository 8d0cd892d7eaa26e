"""`twofold evaluate RUN`: evaluate a finished run on the test part of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table
from threadpoolctl import threadpool_limits

from twofold.core.commands import options
from twofold.core.commands.common import (
    Json,
    choose_side,
    console,
    escaped,
    interpreted_strictly,
    plain_errors,
    visible,
    write_json,
)
from twofold.core.commands.training import reopened
from twofold.core.training.inference import predict


def command(
    run: Annotated[Path, typer.Argument(help="folder of a finished run of train or finetune")],
    side: options.Side = "auto",
    json: Json = None,
) -> None:
    """Evaluate a finished run on the test part of its data: accuracy, and recall by class."""
    with plain_errors():
        chosen_side = choose_side(side)
        opened, dataset = reopened(run)
        settings = opened.settings
        with interpreted_strictly(chosen_side), threadpool_limits(1, "blas"):
            model = opened.load_model(chosen_side)
            probabilities = predict(model, opened.codec.encode_set(dataset.test_x))
        found, y = probabilities.argmax(axis=1), dataset.test_y
        chosen = np.clip(probabilities[np.arange(len(y)), y], 1e-30, 1)
        recall = {
            label: float((found[y == c] == c).mean())
            for c, label in enumerate(settings.labels)
            if (y == c).any()
        }
        result = {
            "data": settings.data,
            "test_accuracy": float((found == y).mean()),
            "test_loss": float(-np.log(chosen).mean()),
            "test_examples": len(y),
            "recall": recall,
        }
        write_json(json, result)  # first, in case nothing can be printed
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("class")
        table.add_column("recall", justify="right")
        for label, share in recall.items():
            table.add_row(escaped(visible(label)), f"{share:.4f}")
        console.print(table)
        console.print(
            f"test accuracy {result['test_accuracy']:.4f}, loss {result['test_loss']:.4f} nats, "
            f"{len(y)} examples",
            highlight=False,
        )
