"""`twofold finetune`: train a pretrained BERT to classify, with our own backward pass and Adam."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from twofold.core import pretrained
from twofold.core.commands import options
from twofold.core.commands.common import Json, escaped, tell, visible
from twofold.core.commands.training import begun, carry_out, recipe_of
from twofold.core.data.datasets import Dataset
from twofold.core.data.fetch import sha256_of
from twofold.core.data.pretrained import NAMES, pretrained_folder
from twofold.core.model import bert, weights
from twofold.core.training.codec import TextCodec
from twofold.core.training.processes import Processes
from twofold.core.training.recipe import Recipe
from twofold.core.training.run import Run
from twofold.core.training.settings import LONGEST, dataset_of
from twofold.reference import checks

# The embeddings, half of the parameters, are frozen: an epoch then takes less time.
RECIPE: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 32,
    "lr": 5e-5,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "word_dropout": 0.0,
    "average": 0.0,
    "frozen": 1,
    "refit": False,
}
QUICK = {"epochs": 1}


def command(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(help="movie, trec, r8, or a path to CSV, TSV or JSONL")
    ] = "movie",
    init: options.Pretrained = "minilm",
    text_column: options.Column = None,
    label_column: options.Column = None,
    out: options.Out = None,
    resume: options.Resume = None,
    side: options.Side = "auto",
    quick: options.Quick = False,
    json: Json = None,
    seed: options.Seed = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    parts: options.Parts = None,
    optimizer: options.Optimizer = None,
    lr: options.LearningRate = None,
    schedule: options.Schedule = None,
    warmup: options.Warmup = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="factor on the learning rate, once for each layer above")
    ] = None,
    frozen: Annotated[
        int | None,
        typer.Option(help="0: none; 1: embeddings; 1 + n: embeddings and first n layers"),
    ] = None,
    weight_decay: options.WeightDecay = None,
    max_norm: options.MaxNorm = None,
    label_smoothing: options.LabelSmoothing = None,
    soft_targets: options.SoftTargets = None,
    average: options.Average = None,
    patience: options.Patience = None,
    refit: options.Refit = None,
    checkpoint_steps: options.CheckpointSteps = None,
    precision: options.Precision = None,
    longest: Annotated[
        int | None, typer.Option(help=f"tokens read of each text; {LONGEST} by default")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean, max or mean_max, in place of BERT's pooler")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="of embeddings and sublayer outputs")
    ] = None,
    attention_dropout: options.AttentionDropout = None,
) -> None:
    """Fine-tune a pretrained BERT; without options, MiniLM on movie reviews, on the CPU."""
    given = {name: value for name, value in locals().items() if value is not None}
    carry_out(lambda processes: _begin(given, processes), context)


def _begin(given: Mapping[str, Any], processes: Processes) -> tuple[Run, Dataset]:
    """Make a new run's folder."""
    data, init = given["data"], given["init"]
    recipe_names = {f.name for f in dataclasses.fields(Recipe)}
    recipe = RECIPE | (QUICK if given["quick"] else {})
    recipe |= {name: value for name, value in given.items() if name in recipe_names}
    # Refuse a bad recipe before anything is fetched.
    checked = recipe_of(recipe, processes, given["side"])
    changed = {n: given[n] for n in ("attention_dropout",) if n in given}
    if "dropout" in given:
        changed |= {"dropout": given["dropout"], "embedding_dropout": given["dropout"]}
    if "pooling" in given:
        checks.choice("pooling", given["pooling"], ("mean", "max", "mean_max"))
        changed |= {"pooling": given["pooling"], "pooler": False}
    for name, p in changed.items():
        if name.endswith("dropout"):
            checks.probability(name, p)
    loaded = pretrained.load(init, **changed)
    model = loaded.model.config
    highest = model.num_layers + 1
    checks.require(checked.frozen <= highest, "frozen", checked.frozen, f"at most {highest}")
    longest = given.get("longest", min(LONGEST, loaded.longest))
    if not 3 <= longest <= model.max_length:
        raise ValueError(f"--longest is {longest}; it must be from 3 to {model.max_length}")
    dataset = dataset_of(data, given.get("text_column"), given.get("label_column"), given["quick"])
    if dataset.kind != "text":
        raise ValueError(f"--data is {data!r}, images; it must be texts")
    _say_drawn(loaded, dataset.labels)
    run = begun(
        given,
        dataset,
        TextCodec(loaded.tokenizer, longest),
        tokenizer="wordpiece",
        init=init if init in NAMES else str(Path(init).resolve()),
        init_sha256=sha256_of(pretrained_folder(init) / weights.WEIGHTS_FILE),
        longest=longest,
        model=dataclasses.replace(model, num_classes=len(dataset.labels)),
        recipe=checked,
    )
    return run, dataset


def _say_drawn(loaded: pretrained.Pretrained, labels: tuple[str, ...]) -> None:
    """Print that the head is drawn, if the model has a trained head for other classes."""
    if weights.classes_of(labels, loaded.labels) is None and not bert.HEAD.keys() & loaded.missing:
        theirs, ours = (", ".join(names[:9]) for names in (loaded.labels, labels))
        said = f"the model's classes are {theirs}; those of the data are {ours}"
        tell(f"[yellow]the head is drawn:[/yellow] {escaped(visible(said))}")
