"""`twofold train`: fetch data, train, judge, and leave a run's folder behind."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from twofold.core.commands.common import (
    FAILED,
    INTERRUPTED,
    choose_side,
    console,
    errors,
    escaped,
    interpreted_strictly,
    plain_errors,
    write_json,
)
from twofold.core.data.baselines import baselines
from twofold.core.data.datasets import Dataset
from twofold.core.model.config import ClassifierConfig
from twofold.core.ops import Side
from twofold.core.training import codec
from twofold.core.training.loop import Event, Interrupted, train
from twofold.core.training.plot import plot
from twofold.core.training.recipe import Recipe
from twofold.core.training.run import PLOT_FILE, Run, RunError
from twofold.core.training.settings import Settings, dataset_of, fingerprint, preferred
from twofold.core.training.trainer import Diverged, accuracy

QUICK = {"epochs": 4, "refit": False}


def command(
    data: Annotated[
        str, typer.Option(help="movie, trec, r8, digits, or a path to CSV, TSV or JSONL")
    ] = "movie",
    text_column: Annotated[str | None, typer.Option(help="of the file")] = None,
    label_column: Annotated[str | None, typer.Option(help="of the file")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run, runs/… by default")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with this run")] = None,
    side: Annotated[
        str, typer.Option(help="reference (NumPy), triton, or auto: triton where CUDA is")
    ] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="a short form, to see that it runs")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="write the result to this file")] = None,
    tokenizer: Annotated[str, typer.Option(help="words or bpe")] = "words",
    patch: Annotated[int, typer.Option(help="edge of an image's patches, pixels")] = 2,
    seed: Annotated[int | None, typer.Option(help="of everything that is drawn")] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, adam, sgd, adagrad")] = None,
    lr: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    schedule: Annotated[str | None, typer.Option(help="linear, cosine, constant")] = None,
    warmup: Annotated[float | None, typer.Option(help="share of the steps")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    max_norm: Annotated[float | None, typer.Option(help="clip the gradient; 0 does not")] = None,
    label_smoothing: Annotated[float | None, typer.Option()] = None,
    soft_targets: Annotated[bool | None, typer.Option(help="learn from graded labels")] = None,
    word_dropout: Annotated[float | None, typer.Option()] = None,
    average: Annotated[float | None, typer.Option(help="decay of the weights' average")] = None,
    patience: Annotated[int | None, typer.Option(help="epochs; 0 never stops early")] = None,
    refit: Annotated[
        bool | None, typer.Option(help="fit again on train and validation together")
    ] = None,
    checkpoint_steps: Annotated[int | None, typer.Option()] = None,
    num_layers: Annotated[int | None, typer.Option("--layers")] = None,
    d_model: Annotated[int | None, typer.Option()] = None,
    num_heads: Annotated[int | None, typer.Option("--heads")] = None,
    d_ff: Annotated[int | None, typer.Option()] = None,
    activation: Annotated[str | None, typer.Option(help="gelu, gelu_tanh, relu")] = None,
    norm: Annotated[str | None, typer.Option(help="pre, post")] = None,
    positions: Annotated[str | None, typer.Option(help="sinusoidal, learned, rotary")] = None,
    pooling: Annotated[str | None, typer.Option(help="first, mean, max, mean_max")] = None,
    dropout: Annotated[float | None, typer.Option(help="of sublayers' outputs")] = None,
    attention_dropout: Annotated[float | None, typer.Option(help="of weights")] = None,
    embedding_dropout: Annotated[float | None, typer.Option()] = None,
) -> None:
    """Train a Transformer classifier; without options, on movie reviews, in a few minutes."""
    given = {name: value for name, value in locals().items() if value is not None}
    with plain_errors():
        if resume is not None:
            run = Run.open(resume)
            dataset = run.settings.dataset()
            if fingerprint(dataset) != run.settings.data_sha256:
                raise RunError(f"{run.settings.data} is not the data that {resume} was begun with")
        else:
            run, dataset = _begin(given)
        result = run.result() if run.finished else _train(run, dataset)
        _show(run, result)
        write_json(json, result)


def _begin(given: Mapping[str, Any]) -> tuple[Run, Dataset]:
    """Make a new run's folder."""
    data = given["data"]
    recipe_names, model_names = (
        {f.name for f in dataclasses.fields(kind)} for kind in (Recipe, ClassifierConfig)
    )
    recipe = preferred(data, "recipe") | (QUICK if given["quick"] else {})
    recipe |= {name: value for name, value in given.items() if name in recipe_names}
    model = preferred(data, "model")
    model |= {name: value for name, value in given.items() if name in model_names}
    checked = Recipe(**recipe)  # before anything is fetched
    if given["tokenizer"] not in codec.TOKENIZERS:
        raise ValueError(f"--tokenizer is {given['tokenizer']!r}; it must be words or bpe")
    dataset = dataset_of(data, given.get("text_column"), given.get("label_column"), given["quick"])
    made = codec.new(dataset, given["tokenizer"], given["patch"])
    settings = Settings(
        data=data,
        text_column=given.get("text_column"),
        label_column=given.get("label_column"),
        data_sha256=fingerprint(dataset),
        labels=dataset.labels,
        side=choose_side(given["side"]).name,
        tokenizer=given["tokenizer"],
        patch=given["patch"],
        quick=given["quick"],
        model=ClassifierConfig(**made.sizes(), num_classes=len(dataset.labels), **model),
        recipe=checked,
    )
    stem = Path(data).stem
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder = given.get("out") or Path("runs") / f"{stem}-{now}"
    return Run.create(folder, settings, made), dataset


def _train(run: Run, dataset: Dataset) -> dict[str, Any]:
    """Train to the end, judge on test, and write the result."""
    side = choose_side(run.settings.side)
    with interpreted_strictly(side):
        return _train_on(side, run, dataset)


def _train_on(side: Side, run: Run, dataset: Dataset) -> dict[str, Any]:
    _say_what(run, dataset, side)
    again = f"go on with: twofold train --resume {run.folder}"
    try:
        with _Shown() as shown:
            model, state = train(run, dataset, side, shown, _passed_over)
    except Interrupted as stopped:
        errors.print(f"{stopped}; {again}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from stopped
    except Diverged as diverged:
        errors.print(
            f"[red]error:[/red] {diverged}. The last good checkpoint is in {run.checkpoints}; "
            "a smaller --lr is the usual remedy",
            soft_wrap=True,
        )
        raise typer.Exit(FAILED) from diverged
    test = accuracy(model, run.codec.encode(dataset.test_x), dataset.test_y)
    result = {
        "data": run.settings.data,
        "side": side.name,
        "seed": run.settings.recipe.seed,
        "test_accuracy": test,
        "validation_accuracy": state.validation_accuracy,
        "baselines": baselines(dataset),
        "train_examples": len(dataset.train_y),
        "test_examples": len(dataset.test_y),
        "parameters": model.layout.parameters,
        "seconds": round(state.seconds, 2),
        "steps_per_second": round(state.done / state.seconds, 2),
        "refit": run.settings.recipe.refit,
    }
    plot(run.folder / PLOT_FILE, state.rows, result)
    run.write_result(result)
    return result


def _passed_over(why: str) -> None:
    errors.print(f"[yellow]passed over:[/yellow] {escaped(why)}", soft_wrap=True)


def _say_what(run: Run, dataset: Dataset, side: Side) -> None:
    model = run.settings.model
    console.print(f"[bold]{dataset.name}[/bold]  {dataset.provenance}", soft_wrap=True)
    console.print(
        f"{len(dataset.train_y)} examples to train, {len(dataset.test_y)} to test, "
        f"{len(dataset.labels)} classes; {model.num_layers} layer(s) of {model.d_model} with "
        f"{model.num_heads} heads, up to {model.max_length} positions; {side.name} side on "
        f"{side.device}; run in {run.folder}",
        soft_wrap=True,
        highlight=False,
    )


def _show(run: Run, result: Mapping[str, Any]) -> None:
    """Print what came of a run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("test accuracy", justify="right")
    for name, value in result["baselines"].items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    table.add_row("[bold]Transformer[/bold]", f"[bold]{result['test_accuracy']:.4f}[/bold]")
    console.print(table)
    held = result["validation_accuracy"]
    console.print(
        f"validation {'—' if held is None else f'{held:.4f}'}, {result['seconds']:.0f} s, "
        f"{result['steps_per_second']:.1f} steps/s, {result['parameters']:,} parameters; "
        f"{run.folder / PLOT_FILE}",
        highlight=False,
        soft_wrap=True,
    )


class _Shown:
    """Progress on a terminal; a line per epoch elsewhere."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.accuracy = "—"
        self.loss: float | None = None

    def __enter__(self) -> _Shown:
        if console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show a step."""
        self.loss = event.loss if self.loss is None else 0.95 * self.loss + 0.05 * event.loss
        if event.validation_accuracy is not None:
            self.accuracy = f"{event.validation_accuracy:.4f}"
        minutes, seconds = divmod(round(event.seconds_left), 60)
        said = f"loss {self.loss:.4f}  validation {self.accuracy}  {minutes}:{seconds:02d} left"
        if console.is_terminal:
            if event.phase not in self.tasks:
                self.tasks[event.phase] = self.bar.add_task(event.phase, total=event.steps, said="")
            self.bar.update(self.tasks[event.phase], completed=event.step, said=said)
        elif event.validation_accuracy is not None or (
            event.phase == "refit" and event.step == event.steps
        ):
            console.print(
                f"{event.phase} epoch {event.epoch}, step {event.step}/{event.steps}: {said}",
                highlight=False,
                soft_wrap=True,
            )
