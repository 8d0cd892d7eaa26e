"""One training step on the CPU: the NumPy side against the same model in PyTorch eager.

Both do the same work: embedding, positions, pre-norm layers, mean and max pooled, all dropouts,
cross-entropy on graded targets, clipping, AdamW, averaged weights; at the default sizes and at
MiniLM's. PyTorch has torch.optim.AdamW in its default and in its fused form. Both sides have the
same number of threads.

Beside the races: where our step's time goes, operator by operator, one part of the batch after the
other on one thread; and what share of it is spent on drawing and padding the batch.

    python benchmarks/bench_train_step.py [--save]
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import harness
import numpy as np
import torch
from peer import Peer, config_of, examples, tensors
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F

from twofold.core import ops
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.training import trainer as trainers
from twofold.core.training.batches import Array, collate, drop_words, epoch_batches
from twofold.core.training.recipe import Recipe

# Size, examples in a batch, length of the longest; the mean is a little less.
RACES = (("default", 64, 24), ("default", 64, 48), ("MiniLM", 32, 64))
STEPS = 20  # that are profiled


def torch_step(
    config: ClassifierConfig, recipe: Recipe, inputs: Sequence[Array], targets: Array, fused: bool
) -> Callable[[], None]:
    """Return what takes their step."""
    torch.manual_seed(0)
    model = Peer(config).train()
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=fused or None
    )
    right = torch.tensor(targets)

    def step() -> None:
        ids, padding = tensors(collate(inputs))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids, padding), right)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.max_norm)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - recipe.average)
        loss.item()

    return step


def numpy_step(
    config: ClassifierConfig,
    recipe: Recipe,
    inputs: Sequence[Array],
    targets: Array,
    side: ops.Side | None = None,
) -> Callable[[], None]:
    """Return what takes our step."""
    trainer = trainers.Trainer(Classifier(config, side or ops.load("reference")), recipe)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        with threadpool_limits(1, "blas"):  # as the loop does: a thread for each part of the batch
            trainer.step(inputs, targets, number, recipe.lr)

    return step


class Timed:
    """A side's operators, and the seconds that each of their passes has taken."""

    def __init__(self, side: ops.Side) -> None:
        self.side, self.seconds = side, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.side, name)
        return TimedOperator(name, found, self.seconds) if name in ops.OPERATORS else found


class TimedOperator:
    """An operator whose functions are timed."""

    def __init__(self, name: str, module: Any, seconds: Counter[str]) -> None:
        self.name, self.module, self.seconds = name, module, seconds

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)
        if not callable(function):
            return function

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[f"{self.name}.{name}"] += time.perf_counter() - start

        return timed


def profile(
    config: ClassifierConfig, recipe: Recipe, inputs: Sequence[Array], targets: Array
) -> dict[str, float]:
    """Return the share of a step that each operator takes, and what is left, the largest first."""
    timed: Any = Timed(ops.load("reference"))
    step = numpy_step(config, replace(recipe, parts=1), inputs, targets, timed)
    step()
    timed.seconds.clear()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    taken = time.perf_counter() - start
    shares = {name: seconds / taken for name, seconds in timed.seconds.most_common()}
    return shares | {"everything else": 1 - sum(shares.values())}


def waiting(recipe: Recipe, inputs: Sequence[Array]) -> float:
    """Return the milliseconds that a step needs for its batch: order, words that drop, padding."""
    lengths = np.array([len(x) for x in inputs] * STEPS)
    start = time.perf_counter()
    for number, chosen in enumerate(epoch_batches(lengths, len(inputs), 0, 0)):
        batch = [inputs[i % len(inputs)] for i in chosen]
        ids = drop_words(np.concatenate(batch), recipe.word_dropout, 1, 0, number)
        collate(np.split(ids, np.cumsum([len(x) for x in batch])[:-1]))
    return (time.perf_counter() - start) / STEPS * 1e3


def main() -> None:
    asked = harness.options(__doc__)
    trainers.use_threads(asked.threads)
    torch.set_num_threads(asked.threads)
    recipe = Recipe()
    races, profiles, shares = {}, {}, {}
    for size, number, length in RACES:
        config, rng = config_of(size), np.random.default_rng(0)
        inputs = examples(rng, number, length - 3, length)
        right = rng.random(number)
        targets = np.stack([1 - right, right], 1).astype(np.float32)
        times = harness.race(
            {
                "twofold, NumPy": numpy_step(config, recipe, inputs, targets),
                "PyTorch eager": torch_step(config, recipe, inputs, targets, fused=False),
                "PyTorch eager, fused AdamW": torch_step(config, recipe, inputs, targets, True),
            },
            seconds=2.0 if asked.quick else 20.0,
        )
        name = f"{size}, batch {number} × length {length}"
        races[name] = harness.summary(times, "PyTorch eager")
        profiles[name] = profile(config, recipe, inputs, targets)
        shares[name] = waiting(recipe, inputs) / races[name]["twofold, NumPy"]["median_ms"]
    result = {
        "ran_on": harness.ran_on(asked.threads),
        "races": races,
        "profile": profiles,
        "share_of_the_step_for_its_batch": shares,
    }
    harness.report("train_step", result, asked)


if __name__ == "__main__":
    main()
