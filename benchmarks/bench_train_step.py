"""Race one training step on the CPU: the NumPy side against the same model in PyTorch eager.

Both do the same work: embedding, positions, pre-norm layers, mean and max pooling, all dropouts,
cross-entropy on soft targets, clipping, AdamW, averaged weights; at the default sizes and at
MiniLM's. PyTorch uses torch.optim.AdamW in its default and in its fused form, and ratios are to
the quicker of the two. Both have the same number of threads.

Also measured: where our step's time goes, operator by operator, with one part of the batch after
another on one thread; and, as shares of it, the time to draw and pad a batch, which a thread does
during the step before, and the time that the step waits for its batch.

On a machine with a GPU, the races of `gpu_steps.py` are run instead.

    python benchmarks/bench_train_step.py [--save]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import gpu_steps
import harness
import numpy as np
from peer import config_of, examples
from steps import our_step, torch_step

from twofold.core import ops
from twofold.core.bench import machine
from twofold.core.commands.common import interpreted_strictly
from twofold.core.model.classifier import Classifier
from twofold.core.model.config import ClassifierConfig
from twofold.core.training import trainer as trainers
from twofold.core.training.batches import Array, Examples, Prepared
from twofold.core.training.feed import Feed, ahead
from twofold.core.training.recipe import Recipe

# Size, examples in a batch, length of the longest (the mean is a little less).
RACES = (("default", 64, 24), ("default", 64, 48), ("MiniLM", 32, 64))
OURS = "twofold, NumPy"
STEPS = 20  # that are profiled


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
    """Return each operator's share of a step, the largest first, and the rest."""
    timed: Any = Timed(ops.load("reference"))
    step = our_step(config, replace(recipe, parts=1), inputs, targets, timed)
    step()
    timed.seconds.clear()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    taken = time.perf_counter() - start
    shares = {name: seconds / taken for name, seconds in timed.seconds.most_common()}
    return shares | {"everything else": 1 - sum(shares.values())}


def feeding(
    config: ClassifierConfig, recipe: Recipe, inputs: Sequence[Array], targets: Array
) -> dict[str, float]:
    """Return the time to make a batch, and to wait for it, as shares of a step's time."""
    trainer = trainers.Trainer(Classifier(config, ops.load("reference")), recipe)
    several = Examples([*inputs] * STEPS, np.zeros(len(inputs) * STEPS, np.int64))
    several = replace(several, soft=np.concatenate([targets] * STEPS))
    feed, made, waited = Feed(several, recipe, 1), 0.0, 0.0

    def make(step: int) -> Prepared:
        nonlocal made
        start = time.perf_counter()
        batch = trainer.prepare(*feed.batch(step))
        made += time.perf_counter() - start
        return batch

    start = time.perf_counter()
    with closing(ahead(make, range(1, STEPS + 1))) as batches:
        for step in range(1, STEPS + 1):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            trainer.learn(batch, step, recipe.lr)
    taken = time.perf_counter() - start
    return {"made": made / taken, "waited": waited / taken}


def main() -> None:
    rehearse = {"action": "store_true", "help": "without a GPU, go through its races in small"}
    asked = harness.options(
        __doc__,
        rehearse=rehearse,
        only={"help": "one of a GPU's models: default or BERT-base"},
        limit={"type": float, "default": gpu_steps.LIMIT, "help": "seconds, on a GPU"},
        precisions={"nargs": "+", "default": list(gpu_steps.PRECISIONS), "help": "on a GPU"},
    )
    harness.use_threads(asked.threads)
    if asked.rehearse or ops.cuda_available():
        side = ops.load("triton")
        with interpreted_strictly(side):
            result = gpu_steps.race(asked, side)
        harness.report("train_step", result, asked)
        gpu_steps.say(result)
    else:
        harness.report("train_step", on_cpu(asked), asked)


def on_cpu(asked: argparse.Namespace) -> dict[str, Any]:
    """Race on the CPU and return the result."""
    recipe, reference = Recipe(), ops.load("reference")
    races, profiles, shares = {}, {}, {}
    for size, number, length in RACES:
        config, rng = config_of(size), np.random.default_rng(0)
        inputs = examples(rng, number, length - 3, length)
        right = rng.random(number)
        targets = np.stack([1 - right, right], 1).astype(np.float32)
        times = harness.race(
            {
                OURS: our_step(config, recipe, inputs, targets, reference),
                "PyTorch eager": torch_step(config, recipe, inputs, targets, fused=False),
                "PyTorch eager, fused AdamW": torch_step(config, recipe, inputs, targets),
            },
            seconds=2.0 if asked.quick else 20.0,
        )
        name = f"{size}, batch {number} × length {length}"
        best = harness.quickest(times, times.keys() - {OURS})
        races[name] = harness.summary(times, best)
        profiles[name] = profile(config, recipe, inputs, targets)
        shares[name] = feeding(config, recipe, inputs, targets)
    return {
        **harness.begun(asked.threads, "cpu"),
        "product_rates": machine.product_rates(1.0),
        "races": races,
        "profile": profiles,
        "share_of_the_step_for_its_batch": shares,
    }


if __name__ == "__main__":
    main()
