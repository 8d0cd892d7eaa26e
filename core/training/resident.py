"""The step on the Triton side: everything it reads stays at fixed addresses, so it can be captured.

A batch, its seeds, the optimizer's numbers for the step and a request to stop are written into
buffers; forward, loss, backward, sum of the parts, norm, clipping, update, rounding to bfloat16 and
average then run without the host in between, on a GPU as one CUDA graph for each shape of a batch
(`core.captured`). A batch is padded to its longest example and no further: which features are
dropped depends on their place in the padded batch, so padding to a few fixed lengths would draw
other masks than the NumPy side does. Batches hold examples of similar length; shapes that recur are
captured.

If the loss or the norm is not finite, neither this update nor any later one changes anything, until
the host has read it and raised `Diverged`. On a GPU that is one step late: losses are copied back
while the next step runs. To wait for all results so far, call `settle`.

Several processes add their gradients between backward and update, in Python, step by step: there
the passes and the update are captured separately, and every step's losses are waited for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from twofold.core.model.seeds import dropout_seeds
from twofold.core.training.batches import Array, Prepared

if TYPE_CHECKING:
    from twofold.core.training.trainer import Trainer

# Shapes that are captured; whatever others there are run as they come. Eight epochs over the movie
# reviews have 78, and 93 in the refit, in batches of 64; 118 and 129 in batches of 32.
MOST = 128
ALIGNED = 2  # int64 from one seed to the next: compiled kernels are told of 16-byte alignment
SHARE, MOVE = 0, 1  # places in the first row of the numbers


class Pending(NamedTuple):
    """A step whose result is on its way: its number, its examples, and what waits for it."""

    step: int
    examples: int
    read: Callable[[], Array]


class Resident:
    """Takes a trainer's steps.

    Attributes:
        late: whether a step's result is read when the next one has begun.
        alone: whether there is no other process.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.ops = trainer, trainer.ops
        ops, parts, sites = self.ops, trainer.parts, trainer.model.config.sites
        self.late = ops.device == "cuda" and trainer.processes.size == 1
        seeds = np.zeros((len(parts), sites, ALIGNED), np.int64)
        numbers = np.zeros((1 + len(trainer.optimizer.over), 4), np.float32)
        self._told = ops.buffers([seeds, numbers, np.zeros(1, np.float32)])
        self._seeds, self._numbers, self._stop = self._told.arrays
        self._seeds_at = [[row[site, 0] for site in range(sites)] for row in self._seeds]
        self._go = ops.asarray(np.array(True))
        # The loss of every part, the wish to stop, the norm. What processes add up, all but the
        # norm, is written behind the gradient, which they add up as well.
        self._result = ops.zeros((trainer.recipe.parts + 2,))
        self.alone = trainer.processes.size == 1
        numel = trainer.learned.numel
        self._found = self._result[:-1] if self.alone else trainer.grads[0][numel:]
        self._steps: dict[Any, _Step] = {}
        self._update = ops.captured(self.update)
        self._pending: Pending | None = None

    def learn(self, batch: Prepared, step: int, lr: float, stop: bool) -> None:
        """Take a step: `Trainer.learn`, whose arguments and errors these are."""
        trainer, ops = self.trainer, self.ops
        taken = self._step(batch)
        taken.batch.write(_arrays(batch))
        numbers = self._scalars(batch.examples, step, lr)
        self._told.write([self._drawn(step), numbers, np.array([stop], np.float32)])
        taken.run()
        if not self.alone:
            trainer.processes.add(trainer.grads[0])
            self._update()
        before, self._pending = self._pending, Pending(step, batch.examples, ops.read(self._result))
        if before is not None:
            self._known(before)
        if not self.late:
            self.settle()

    def settle(self) -> None:
        """Wait for the last step's result.

        Raises:
            Diverged: it is not finite.
        """
        last, self._pending = self._pending, None
        if last is not None:
            self._known(last)

    def _known(self, of: Pending) -> None:
        *losses, stops, norm = of.read().tolist()
        try:
            self.trainer.record(of.step, losses[: of.examples], of.examples, norm, stops > 0)
        except ArithmeticError:
            self._pending = None
            self._go[...] = True
            raise

    def _step(self, batch: Prepared) -> _Step:
        key = tuple((x.shape, x.dtype.name) for x in _arrays(batch))
        if key not in self._steps:
            if len(self._steps) == MOST:
                return _Step(self, batch, _as_it_is)
            self._steps[key] = _Step(self, batch, self.ops.captured)
        return self._steps[key]

    def _drawn(self, step: int) -> Array:
        """Return the seeds of a step's masks, as they lie."""
        trainer = self.trainer
        seeds, sites = np.zeros(tuple(self._seeds.shape), np.int64), self._seeds.shape[1]
        for row, part in zip(seeds, trainer.parts, strict=True):
            row[:, 0] = dropout_seeds(trainer.recipe.seed, step, part, sites)
        return seeds

    def _scalars(self, examples: int, step: int, lr: float) -> Array:
        """Return the numbers of a step, as they lie: worked out in float64, rounded once."""
        numbers = np.zeros(tuple(self._numbers.shape), np.float32)
        decay = self.trainer.decay(step)
        numbers[0, :2] = 1 / examples, 1 - decay
        for row, given in zip(numbers[1:], self.trainer.optimizer.numbers(step, lr), strict=True):
            row[: len(given)] = given
        return numbers

    def passes(self, parts: Sequence[tuple[Any, ...]]) -> None:
        """Write the gradient of this process's parts, the loss of each, and the wish to stop.

        Args:
            parts: inputs, lengths and targets of each.
        """
        trainer, share = self.trainer, self._numbers[0, SHARE]
        losses = [
            trainer.forward_backward(inputs, lengths, targets, self._seeds_at[i], share, i)
            for i, (inputs, lengths, targets) in enumerate(parts)
        ]
        trainer.sum_of_parts(len(losses))
        if len(losses) < trainer.recipe.parts:
            self._found[:-1] = -0.0  # which changes nothing that other processes add to it
        for i, loss in enumerate(losses, trainer.parts.start):
            self._found[i] = loss
        self._found[-1:] = self._stop

    def update(self) -> None:
        """Take the optimizer's step, if all is finite, with what follows it."""
        trainer, numel = self.trainer, self.trainer.learned.numel
        grads = trainer.grads[0]
        norm = self.ops.optimizers.global_norm(grads[:numel])
        if not self.alone:
            self._result[:-1] = self._found
        self._result[-1] = norm
        self._go &= self._result.norm(math.inf) < math.inf  # of NaN it is NaN
        numbers = [row[: trainer.optimizer.count] for row in self._numbers[1:]]
        trainer.optimizer.step(
            trainer.model.flat, grads[:numel], step=1, lr=0.0, grad_norm=norm,
            numbers=numbers, go=self._go,
        )  # fmt: skip
        trainer.round()
        if trainer.average is not trainer.model:
            move = self._numbers[0, MOVE] * self._go  # by 0 it stays where it is
            for at in trainer.optimizer.over:
                trainer.average.flat[at.params].lerp_(trainer.model.flat[at.params], move)


class _Step:
    """What runs for batches of one shape, and where they are written for it."""

    def __init__(self, resident: Resident, batch: Prepared, captured: Any) -> None:
        self.batch = resident.ops.buffers(_arrays(batch))
        arrays = self.batch.arrays
        parts = [tuple(arrays[i : i + 3]) for i in range(0, len(arrays), 3)]

        def whole() -> None:
            resident.passes(parts)
            if resident.alone:
                resident.update()

        self.run = captured(whole)


def _arrays(batch: Prepared) -> list[Array]:
    """Return inputs, lengths and targets of every part, one after the other."""
    return [x for part, targets in batch.parts.values() for x in (*part, targets)]


def _as_it_is(function: Callable[[], None]) -> Callable[[], None]:
    return function
