"""Batches prepared ahead: during a step, a thread draws and pads the batch for the next one.

A batch is a function of the seed and the step number alone, so it has the same bits wherever and
whenever it is made, and a resumed run makes the batches it would have made.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from twofold.core.training.batches import (
    Array,
    Examples,
    drop_words,
    epoch_batches,
    steps_per_epoch,
)
from twofold.core.training.recipe import Recipe

_X = TypeVar("_X")


class Feed:
    """The batches of one fit, by the number of the step that learns from them.

    Args:
        examples: the training examples.
        recipe: the batch size, what is drawn, and the seed.
        unknown: the id that stands for a dropped word; None if inputs are not words.
    """

    def __init__(self, examples: Examples, recipe: Recipe, unknown: int | None) -> None:
        self.examples, self.recipe = examples, recipe
        self.unknown = unknown if recipe.word_dropout > 0.0 else None
        self.per_epoch = steps_per_epoch(len(examples), recipe.batch_size)
        self._lengths = examples.lengths
        self._epoch: tuple[int, list[Array]] = (-1, [])  # the last one drawn

    def batch(self, step: int) -> tuple[list[Array], Array]:
        """Return the inputs and the targets of a step, which counts from 1 over all epochs."""
        examples, recipe = self.examples, self.recipe
        epoch, number = divmod(step - 1, self.per_epoch)
        if self._epoch[0] != epoch:
            order = epoch_batches(self._lengths, recipe.batch_size, recipe.seed, epoch)
            self._epoch = epoch, order
        chosen = self._epoch[1][number]
        inputs: list[Array] = [examples.inputs[i] for i in chosen]
        if self.unknown is not None:
            ends = np.cumsum([len(x) for x in inputs])
            ids = np.concatenate(inputs)
            ids = drop_words(ids, recipe.word_dropout, self.unknown, recipe.seed, step)
            inputs = np.split(ids, ends[:-1])
        graded = examples.soft if recipe.soft_targets else None
        return inputs, (examples.labels if graded is None else graded)[chosen]


def ahead(make: Callable[[int], _X], numbers: Iterable[int]) -> Generator[_X, None, None]:
    """Yield `make(n)` for every number, in order, each made in a thread while the last is in use.

    What `make` raises is raised in place of its result. The generator must be closed.
    """
    pool = ThreadPoolExecutor(1, "twofold-feed")
    try:
        coming: Future[_X] | None = None
        for n in numbers:
            coming, ready = pool.submit(make, n), coming
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
