"""`twofold train`: fetch data, train, evaluate, and leave a run's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import typer

from twofold.core.commands import options
from twofold.core.commands.common import Json
from twofold.core.commands.training import begun, carry_out, recipe_of
from twofold.core.data.datasets import Dataset
from twofold.core.model.config import ClassifierConfig
from twofold.core.training import codec
from twofold.core.training.processes import Processes
from twofold.core.training.recipe import Recipe
from twofold.core.training.run import Run
from twofold.core.training.settings import Settings, dataset_of, preferred
from twofold.reference import checks

QUICK = {"epochs": 4, "refit": False}


def command(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(help="movie, trec, r8, digits, or a path to CSV, TSV or JSONL")
    ] = "movie",
    text_column: options.Column = None,
    label_column: options.Column = None,
    out: options.Out = None,
    resume: options.Resume = None,
    side: options.Side = "auto",
    quick: options.Quick = False,
    json: Json = None,
    tokenizer: Annotated[str | None, typer.Option(help="words or bpe; words by default")] = None,
    patch: Annotated[
        int | None, typer.Option(help="edge of an image patch in pixels; 2 by default")
    ] = None,
    seed: options.Seed = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    parts: options.Parts = None,
    optimizer: options.Optimizer = None,
    lr: options.LearningRate = None,
    schedule: options.Schedule = None,
    warmup: options.Warmup = None,
    weight_decay: options.WeightDecay = None,
    max_norm: options.MaxNorm = None,
    label_smoothing: options.LabelSmoothing = None,
    soft_targets: options.SoftTargets = None,
    word_dropout: Annotated[
        float | None, typer.Option(help="share of tokens replaced by the unknown word")
    ] = None,
    average: options.Average = None,
    patience: options.Patience = None,
    refit: options.Refit = None,
    checkpoint_steps: options.CheckpointSteps = None,
    precision: options.Precision = None,
    num_layers: Annotated[int | None, typer.Option("--layers", help="encoder layers")] = None,
    d_model: Annotated[int | None, typer.Option(help="width of the model")] = None,
    num_heads: Annotated[int | None, typer.Option("--heads", help="attention heads")] = None,
    d_ff: Annotated[int | None, typer.Option(help="width of the feed-forward layers")] = None,
    activation: Annotated[
        str | None, typer.Option(help="gelu, gelu_tanh, relu, tanh, silu")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="pre, post")] = None,
    positions: Annotated[str | None, typer.Option(help="sinusoidal, learned, rotary")] = None,
    pooling: Annotated[str | None, typer.Option(help="first, mean, max, mean_max")] = None,
    dropout: Annotated[float | None, typer.Option(help="of sublayer outputs")] = None,
    attention_dropout: options.AttentionDropout = None,
    embedding_dropout: Annotated[float | None, typer.Option(help="of embeddings")] = None,
) -> None:
    """Train a Transformer classifier; without options, on movie reviews, in a few minutes.

    Defaults depend on the data set; the run keeps all its settings in run.json.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    carry_out(lambda processes: _begin(given, processes), context)


def _begin(given: Mapping[str, Any], processes: Processes) -> tuple[Run, Dataset]:
    """Make a new run's folder."""
    data = given["data"]
    recipe_names, model_names = (
        {f.name for f in dataclasses.fields(kind)} for kind in (Recipe, ClassifierConfig)
    )
    recipe = preferred(data, "recipe") | (QUICK if given["quick"] else {})
    recipe |= {name: value for name, value in given.items() if name in recipe_names}
    model = preferred(data, "model")
    model |= {name: value for name, value in given.items() if name in model_names}
    # Refuse a bad recipe before anything is fetched.
    checked = recipe_of(recipe, processes, given["side"])
    tokenizer, patch = given.get("tokenizer", "words"), given.get("patch", Settings.patch)
    if tokenizer not in codec.TOKENIZERS:
        raise ValueError(f"tokenizer is {tokenizer!r}; it must be words or bpe")
    dataset = dataset_of(data, given.get("text_column"), given.get("label_column"), given["quick"])
    _check_kind(dataset, given, patch)
    made = codec.new(dataset, tokenizer, patch)
    run = begun(
        given,
        dataset,
        made,
        tokenizer=tokenizer,
        patch=patch,
        model=ClassifierConfig(**made.sizes(), num_classes=len(dataset.labels), **model),
        recipe=checked,
    )
    return run, dataset


def _check_kind(dataset: Dataset, given: Mapping[str, Any], patch: int) -> None:
    """Refuse options for texts if the data are images, and the other way round."""
    for name, kind in (("tokenizer", "text"), ("word_dropout", "text"), ("patch", "images")):
        fits, must = dataset.kind == kind, f"left out where data is {dataset.kind}"
        checks.require(name not in given or fits, name, repr(given.get(name)), must)
    if dataset.kind == "images":
        height, width = np.shape(dataset.train_x)[1:]
        divides = patch >= 1 and height % patch == 0 and width % patch == 0
        checks.require(divides, "patch", patch, f"a divisor of both {height} and {width}")
