"""How a classifier is trained: one dataclass, written as JSON into the run's folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from twofold.core.fields import check_kinds
from twofold.reference import checks

OPTIMIZERS = ("adamw", "adam", "sgd", "adagrad")
SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Choices of a training run; an impossible one raises an error that names it.

    Attributes:
        seed: of everything that is drawn: initial parameters, order, dropout.
        epochs, batch_size: passes over the examples, and how many of them make a step.
        parts: micro-batches that a batch is split into, each with dropout masks of its own; their
            gradients are added. On the NumPy side every part has a thread. Several processes share
            the parts evenly.
        optimizer: one of `OPTIMIZERS`; "adam" adds weight decay to the gradient, "adamw" does not.
        lr: peak learning rate.
        schedule: "linear" or "cosine" decay towards 0 after the peak, or "constant".
        warmup: share of all steps in which the rate climbs linearly to its peak.
        weight_decay: of matrices; biases and norms do not decay.
        momentum: of SGD.
        frozen: how many parts of the model, from below, do not learn: 1 for the embeddings, 1 + n
            for the embeddings and n layers.
        layer_decay: factor on the learning rate of each part, applied once for every part above
            it; 1 gives all parts the same rate.
        max_norm: the gradient is clipped to this norm; 0 does not clip.
        label_smoothing: share of every target spread over all classes.
        soft_targets: learn from soft labels where the data has them.
        word_dropout: share of training tokens replaced by the unknown word.
        average: decay of the running average of parameters that becomes the model; 0 for none.
        patience: stop after this many epochs without a better validation accuracy and go back to
            the best; 0 trains to the end.
        refit: after the fit that holds validation out, fit again on training and validation data.
        checkpoint_steps: steps between checkpoints.
        precision: of the model's forward and backward pass, one of `PRECISIONS`. In either,
            parameters, sums of gradients, moments, averages and the loss are float32, and so is the
            model that training ends with. Only the kernels have bfloat16.
    """

    seed: int = 0
    epochs: int = 8
    batch_size: int = 64
    parts: int = 2
    optimizer: str = "adamw"
    lr: float = 1e-3
    schedule: str = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.1
    momentum: float = 0.9
    frozen: int = 0
    layer_decay: float = 1.0
    max_norm: float = 1.0
    label_smoothing: float = 0.0
    soft_targets: bool = True
    word_dropout: float = 0.2
    average: float = 0.995
    patience: int = 0
    refit: bool = True
    checkpoint_steps: int = 200
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_kinds(self)
        checks.seed(self.seed)
        for name in ("epochs", "batch_size", "parts", "checkpoint_steps"):
            checks.require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        must = f"at most batch_size, {self.batch_size}"
        checks.require(self.parts <= self.batch_size, "parts", self.parts, must)
        checks.require(0.0 < self.layer_decay <= 1.0, "layer_decay", self.layer_decay, "in (0, 1]")
        for name in ("lr", "weight_decay", "max_norm", "patience", "frozen"):
            checks.require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("warmup", "momentum", "label_smoothing", "word_dropout", "average"):
            checks.probability(name, getattr(self, name))
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.choice("precision", self.precision, PRECISIONS)

    def check_side(self, side: str) -> None:
        """Raise `ValueError` if the side of this name cannot do what the recipe asks."""
        able = self.precision == "float32" or side == "triton"
        checks.require(able, "precision", repr(self.precision), "'float32' on the NumPy side")

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the recipe from its fields; an unknown one raises `ValueError`."""
        known = tuple(f.name for f in dataclasses.fields(cls))
        for name in fields:
            checks.choice("a field of the recipe", name, known)
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, ready for `json.dump`."""
        return dataclasses.asdict(self)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step, 1 ≤ step ≤ steps: warmup, then the schedule."""
    climbing = round(recipe.warmup * steps)
    if step <= climbing:
        return recipe.lr * step / climbing
    gone = (step - 1 - climbing) / (steps - climbing)
    if recipe.schedule == "linear":
        return recipe.lr * (1 - gone)
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * gone)) / 2
    return recipe.lr
