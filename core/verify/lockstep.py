"""Both sides trained from one seed, dropout on, compared after every step.

Each operator keeps its contract by itself; this asks whether the sides still agree once operators,
optimizer and dropout masks are wired together. How far they may drift apart is measured, not
derived: a third run, the reference in float64, stands for the truth, and

    |triton − float64| ≤ ρ·|NumPy float32 − float64|

in the maximum norm of each parameter and of the loss. Errors are linear in the roundoff to first
order, and a kernel's is at most ρ times NumPy's: ρ = u_product/u, 2⁻²⁰ for three tf32 products
against 2⁻²⁴ (`machines.machine`). One rounding of the largest value is always allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.ops import Side, load
from twofold.core.training.recipe import Recipe, learning_rate
from twofold.core.training.trainer import Trainer
from twofold.core.verify.rounding import machine

Array = np.ndarray[Any, np.dtype[Any]]

TINY = ClassifierConfig(
    input_size=37, num_classes=3, max_length=12, d_model=24, num_heads=3, num_layers=2, d_ff=40,
    activation="gelu",
)  # fmt: skip
DEFAULT = ClassifierConfig(input_size=7000, num_classes=2, max_length=64)


class Difference(NamedTuple):
    """How far one quantity is off after a step: `share` of what is allowed, at most 1."""

    step: int
    name: str
    share: float
    distance: float
    allowed: float


def lockstep(
    side: Side,
    config: ClassifierConfig = TINY,
    *,
    steps: int = 10,
    batch_size: int = 8,
    seed: int = 0,
    observe: Callable[[list[Difference]], None] = lambda found: None,
) -> list[Difference]:
    """Train on `side`, on the reference and on the reference in float64; return all differences.

    Args:
        side: what is judged.
        config: of a model that reads tokens.
        steps, batch_size: how many steps, and how many random examples in each.
        seed: for everything.
        observe: called with the differences after each step.
    """
    recipe = Recipe(seed=seed, epochs=1, batch_size=batch_size, word_dropout=0.0)
    reference = load("reference")
    trainers = {
        "judged": Trainer(Classifier(config, side, seed=seed), recipe),
        "float32": Trainer(Classifier(config, reference, seed=seed), recipe),
        "float64": Trainer(Classifier(config, reference, seed=seed, dtype="float64"), recipe),
    }
    rng = np.random.default_rng(seed)
    found = []
    for step in range(1, steps + 1):
        inputs = [
            rng.integers(0, config.input_size, rng.integers(1, config.max_length + 1))
            for _ in range(batch_size)
        ]
        targets = rng.integers(0, config.num_classes, batch_size)
        for trainer in trainers.values():
            trainer.step(inputs, targets, step, learning_rate(recipe, step, steps))
        differences = _compare(step, *(_state(t) for t in trainers.values()))
        observe(differences)
        found += differences
    return found


def _state(trainer: Trainer) -> dict[str, Array]:
    values = {n: trainer.ops.to_numpy(x) for n, x in trainer.model.params.items()}
    return {"loss": np.array(trainer.loss), **values}


def _compare(
    step: int, judged: dict[str, Array], single: dict[str, Array], double: dict[str, Array]
) -> list[Difference]:
    on = machine("float32")
    differences = []
    for name, truth in double.items():
        distance, own = (float(np.abs(x[name] - truth).max()) for x in (judged, single))
        allowed = on.u_product / on.u * own + on.u * float(np.abs(truth).max())
        share = distance / allowed if distance > 0 else 0.0
        differences.append(Difference(step, name, share, distance, allowed))
    return differences
