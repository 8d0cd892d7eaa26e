"""Batches of examples of similar length: a pure function of seed and epoch.

Examples are shuffled, sorted by length within pools of a few batches and cut into batches, which
are shuffled again, so that there is little padding and the order stays nearly random.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

POOL = 16  # batches sorted together
ORDER, WORDS = 1, 2  # independent streams of random numbers


@dataclass(frozen=True)
class Examples:
    """Encoded examples that a model is trained or evaluated on.

    Attributes:
        inputs: token ids (L,) int64 of every example, or patches (L, P) float32.
        labels: (n,) int64.
        soft: (n, C) float32, soft labels, or None.
    """

    inputs: Sequence[Array]
    labels: Array
    soft: Array | None = None

    @property
    def lengths(self) -> Array:
        """Length of every example, (n,) int64."""
        return np.array([len(x) for x in self.inputs], np.int64)

    def __len__(self) -> int:
        return len(self.inputs)

    def __add__(self, other: Examples) -> Examples:
        soft = None
        if self.soft is not None and other.soft is not None:
            soft = np.concatenate([self.soft, other.soft])
        labels = np.concatenate([self.labels, other.labels])
        return Examples([*self.inputs, *other.inputs], labels, soft)


class Batch(NamedTuple):
    """Inputs (B, L) or (B, L, P), zero in the padding, and lengths (B,)."""

    inputs: Array
    lengths: Array


class Prepared(NamedTuple):
    """A batch as a step takes it.

    Attributes:
        examples: how many the whole batch holds.
        parts: (inputs, targets) of the parts that belong to this process, by their number.
    """

    examples: int
    parts: dict[int, tuple[Batch, Array]]


def check_alike(inputs: Sequence[Array]) -> None:
    """Raise `TypeError` or `ValueError` unless all examples can share a batch.

    Padding them into one array would silently cast an example of another dtype.
    """
    for n, x in enumerate(inputs):
        named, must = f"inputs[{n}]", "it must be that of inputs[0]"
        if x.dtype != inputs[0].dtype:
            raise TypeError(f"{named} has dtype {x.dtype}; {must}, {inputs[0].dtype}")
        if x.shape[1:] != inputs[0].shape[1:]:
            raise ValueError(
                f"{named}.shape is {x.shape}; {must} but for length, {inputs[0].shape}"
            )


def collate(inputs: Sequence[Array]) -> Batch:
    """Pad examples to the longest of them; `check_alike` must have passed."""
    lengths = np.array([len(x) for x in inputs], np.int64)
    shape = (len(inputs), int(lengths.max()), *inputs[0].shape[1:])
    padded = np.zeros(shape, inputs[0].dtype)
    for row, x in zip(padded, inputs, strict=True):
        row[: len(x)] = x
    return Batch(padded, lengths)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of batches in an epoch; the last may be smaller."""
    return -(-examples // batch_size)


def epoch_batches(lengths: Array, batch_size: int, seed: int, epoch: int) -> list[Array]:
    """Return the examples' indices batch by batch, each example once.

    Args:
        lengths: (n,) of the examples.
        batch_size: examples in a batch.
        seed, epoch: what the order is drawn from.
    """
    rng = np.random.default_rng([seed, ORDER, epoch])
    order = rng.permutation(len(lengths))
    pools = [
        pool[np.argsort(lengths[pool], kind="stable")]
        for pool in np.split(order, range(POOL * batch_size, len(order), POOL * batch_size))
    ]
    batches = [
        batch
        for pool in pools
        for batch in np.split(pool, range(batch_size, len(pool), batch_size))
    ]
    return [batches[i] for i in rng.permutation(len(batches))]


def even_batches(lengths: Array, positions: int, padding: int, workers: int) -> list[Array]:
    """Return the examples' indices batch by batch, shortest first, each example once.

    Their number is rounded up to a multiple of `workers`, and they are then made as small as that
    number allows.

    Args:
        lengths: (n,) of the examples.
        positions: most positions in a batch, padding included, unless one example alone has more.
        padding: how many of the positions may be padding.
        workers: how many share the batches.
    """
    order = np.argsort(lengths, kind="stable")
    ordered: list[int] = lengths[order].tolist()
    sums = [0, *accumulate(ordered)]

    def ends(most: int) -> list[int]:
        """Return where batches end if each holds at most so many positions."""

        def too_much(last: int) -> bool:
            padded = ordered[last] * (last + 1 - start)
            return padded > most or padded - (sums[last + 1] - sums[start]) > padding

        found, start = [], 0
        while start < len(ordered):
            others = range(start + 1, len(ordered))
            start = others.start + bisect_left(others, True, key=too_much)
            found.append(start)
        return found

    number = -(-len(ends(positions)) // workers) * workers
    fewer = range(max(1, sums[-1] // max(1, number)), positions)
    most = fewer.start + bisect_left(fewer, True, key=lambda n: len(ends(n)) <= number)
    return np.split(order, ends(most))[:-1]


def drop_words(ids: Array, p: float, unknown: int, seed: int, step: int) -> Array:
    """Replace each token by the unknown token with probability `p`, drawn from seed and step."""
    rng = np.random.default_rng([seed, WORDS, step])
    return np.where(rng.random(ids.shape) < p, unknown, ids)
