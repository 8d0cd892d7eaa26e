"""One step of training, on either side: forward, loss, backward, clipping, update, average.

A batch is processed in parts, each with its own dropout masks; their gradients are added pairwise,
so the result depends on the number of parts but not on which of them run at the same time, or in
which process. On the NumPy side every part has a thread. The update has none: its many short sweeps
would lose more to contention for Python's lock than they gain (9 ms in two threads, 4 in one).

In bfloat16 the passes use a copy of the parameters that is rounded anew after every step; each part
of the model returns gradients that were summed in float32 and rounded once, and from there on, as
in the loss, everything is float32 (Micikevicius et al. 2018, "Mixed Precision Training", 3.1;
bfloat16 has the range of float32, so nothing is scaled).

This file has what both sides share, and the NumPy side's step; the Triton side's is in `resident`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from twofold.core.model.classifier import Classifier
from twofold.core.model.parameters import Layout
from twofold.core.model.seeds import dropout_seeds
from twofold.core.training.batches import Array, Prepared, check_alike, collate
from twofold.core.training.optimizer import Optimizer, stretches
from twofold.core.training.processes import ALONE, Processes
from twofold.core.training.recipe import Recipe
from twofold.core.training.resident import Resident
from twofold.core.training.threads import parallel
from twofold.reference import checks
from twofold.reference.checks import dtype_name

SLICE = 1 << 15  # elements averaged at a time, so that they stay in cache


class Diverged(ArithmeticError):
    """The loss or the gradient is no longer finite."""


class Trainer:
    """A model and everything that changes in training.

    Attributes:
        model: learns in place.
        working: the model that the passes use: `model` itself, or its copy in bfloat16.
        average: a model of the parameters' running averages, or `model` itself without them.
        grads: the buffers of the parts' gradients; the first one becomes their sum.
        loss, grad_norm: of the last step whose result is known.
        losses: of all steps since the list was last emptied.
        stop: whether any process was asked to stop, as of the last step whose result is known.
        resident: what takes the steps on the Triton side; None on the NumPy side.

    Raises:
        ValueError: the recipe freezes more parts than there are, the side does not have its
            precision, or its parts cannot be divided evenly among the processes.
    """

    def __init__(self, model: Classifier, recipe: Recipe, processes: Processes = ALONE) -> None:
        self.model, self.recipe, self.ops = model, recipe, model.ops
        recipe.check_side(self.ops.name)
        self.processes, self.parts = processes, processes.share(recipe.parts)
        dtype, top = dtype_name(model.flat), 1 + model.config.num_layers
        checks.require(recipe.frozen <= top, "frozen", recipe.frozen, f"at most {top}: the head")
        shapes = model.layout.shapes
        self.learned = Layout({n: s for n, s in shapes.items() if model.part(n) >= recipe.frozen})
        factors = {n: recipe.layer_decay ** (top - model.part(n)) for n in self.learned.shapes}
        over = stretches(model.layout, self.learned, factors)
        self.optimizer = Optimizer(recipe, self.ops, self.learned.numel, over, dtype)
        self.average = model
        if recipe.average > 0.0:
            flat = self.ops.asarray(self.ops.to_numpy(model.flat).copy())
            self.average = Classifier(model.config, self.ops, flat, dtype=dtype)
        self.working = model
        if recipe.precision != "float32":
            rounded = self.ops.asarray(model.flat, recipe.precision)
            self.working = Classifier(model.config, self.ops, rounded, dtype=recipe.precision)
        # After the gradient there is room for the loss of every part and the stop flag.
        numel = self.learned.numel
        size = (numel + recipe.parts + 1,)
        self.grads = [self.ops.zeros(size, dtype) for _ in self.parts]
        self._views = [self.learned.views(g[:numel]) for g in self.grads]
        self.loss = self.grad_norm = math.nan
        self.losses: list[float] = []
        self.stop = False
        self.resident = None if self.ops.name == "reference" else Resident(self)

    def step(
        self, inputs: Sequence[Array], targets: Array, step: int, lr: float, stop: bool = False
    ) -> None:
        """Learn from one batch: `prepare`, `learn` and `settle` in one call."""
        self.learn(self.prepare(inputs, targets), step, lr, stop)
        self.settle()

    def prepare(self, inputs: Sequence[Array], targets: Array) -> Prepared:
        """Return this process's parts of a batch, padded; may run during a step.

        Args:
            inputs: token ids (L,) or patches (L, P) of every example.
            targets: (B,) int64 labels or (B, C) float32 probabilities.

        Raises:
            TypeError, ValueError: there are no examples, or they cannot share a batch.
        """
        checks.require(len(inputs) > 0, "inputs", "empty", "at least one example")
        check_alike(inputs)
        parts, targets = min(self.recipe.parts, len(inputs)), np.asarray(targets)
        mine = range(self.parts.start, min(self.parts.stop, parts))
        cut = {part: (collate(inputs[part::parts]), targets[part::parts]) for part in mine}
        return Prepared(len(inputs), cut)

    def learn(self, batch: Prepared, step: int, lr: float, stop: bool = False) -> None:
        """Take one step.

        Args:
            batch: from `prepare`.
            step: counts from 1.
            lr: learning rate of this step.
            stop: whether this process was asked to stop.

        Raises:
            Diverged: the loss or the gradient's norm of this step, or on a GPU of the one before,
                is not finite; neither that step nor any later one changed anything.
            Lost: another process died; nothing was changed.
        """
        checks.count("step", step, 1)
        checks.require(step < 2**32, "step", step, "below 2**32")
        if self.resident is not None:
            self.resident.learn(batch, step, lr, stop)
            return
        share, mine = np.array(1 / batch.examples), list(batch.parts)

        def work(part: int) -> float:
            (inputs, lengths), targets = batch.parts[part]
            seeds = dropout_seeds(self.recipe.seed, step, part, self.model.config.sites)
            slot = part - self.parts.start
            return float(self.forward_backward(inputs, lengths, targets, seeds, share, slot))

        grads, losses = self._sum(parallel(work, mine), stop)
        norm = self.ops.optimizers.global_norm(grads)
        self.record(step, losses[: batch.examples], batch.examples, float(norm), self.stop)
        self.optimizer.step(self.model.flat, grads, step=step, lr=lr, grad_norm=norm)
        if self.average is not self.model:
            self._follow(step)

    def settle(self) -> None:
        """Wait for the result of the last step, if it is not known yet.

        Raises:
            Diverged: its loss or the gradient's norm is not finite; it changed nothing.
        """
        if self.resident is not None:
            self.resident.settle()

    def record(
        self, step: int, losses: list[float], examples: int, norm: float, stop: bool
    ) -> None:
        """Record a step's result: the loss of its parts, the norm, whether to stop.

        Raises:
            Diverged: the loss or the norm is not finite.
        """
        share = 1 / examples
        self.loss, self.grad_norm = sum(loss * share for loss in losses), norm
        self.stop = stop
        if not math.isfinite(self.loss) or not math.isfinite(self.grad_norm):
            raise Diverged(
                f"step {step}: the loss is {self.loss:.6g} and the gradient's norm "
                f"{self.grad_norm:.6g}; both must be finite"
            )
        self.losses.append(self.loss)

    def _sum(self, losses: list[float], stop: bool) -> tuple[Any, list[float]]:
        """Return the gradient over all parts of all processes, and the loss of each part."""
        numel, parts = self.learned.numel, self.recipe.parts
        grads = self.sum_of_parts(len(losses))
        tail = np.full(parts + 1, -0.0)
        tail[self.parts.start : self.parts.start + len(losses)] = losses
        tail[parts] = stop
        grads[numel:] = self.ops.asarray(tail, dtype_name(grads))
        self.processes.add(grads)
        *found, stops = self.ops.to_numpy(grads[numel:]).tolist()
        self.stop = stops > 0
        return grads[:numel], found

    def sum_of_parts(self, present: int) -> Any:
        """Return the first gradient buffer, holding the sum of the first `present`.

        If none is, it is filled with −0, which added to a number changes nothing, not even the sign
        of a zero.
        """
        some = iter(self.grads[:present])
        grads = added([next(some, None) for _ in self.parts])
        if grads is None:  # fewer examples than parts
            grads = self.grads[0]
            grads[: self.learned.numel] = -0.0
        return grads

    def round(self) -> None:
        """Copy the learning parameters into the model that the passes use, rounded to nearest."""
        if self.working is not self.model:
            for at in self.optimizer.over:
                self.working.flat[at.params] = self.model.flat[at.params]

    def decay(self, step: int) -> float:
        """Return the decay of the average, smaller early on so that it forgets where it began.

        After n updates it is at most (1 + n)/(10 + n), as in TensorFlow's
        `ExponentialMovingAverage` with `num_updates`; here n = step − 1.
        """
        return min(self.recipe.average, step / (step + 9))

    def _follow(self, step: int) -> None:
        """Move the average towards the parameters."""
        decay = self.decay(step)
        for at in self.optimizer.over:
            first, stop, _ = at.params.indices(self.model.layout.numel)
            for start in range(first, stop, SLICE):
                end = min(start + SLICE, stop)
                average = self.average.flat[start:end]
                average *= decay
                average += (1 - decay) * self.model.flat[start:end]

    def forward_backward(
        self, inputs: Any, lengths: Any, targets: Any, seeds: Sequence[Any], share: Any, slot: int
    ) -> Any:
        """Write the gradient of one part's share of the mean loss; return the sum of its losses.

        Args:
            inputs, lengths, targets: the part, padded, on this side.
            seeds: of the dropout masks by site: numbers or 0-d arrays.
            share: 0-d, 1 over the number of examples in the whole batch.
            slot: which of this process's parts it is, counted from 0.
        """
        ops, model = self.ops, self.working
        low, high = dtype_name(model.flat), dtype_name(self.model.flat)
        patches = model.config.input == "patches"
        logits, cache = model.forward(ops.asarray(inputs, low if patches else None), lengths, seeds)
        loss, loss_cache = ops.softmax_cross_entropy.forward(
            ops.asarray(logits, high),
            targets,
            label_smoothing=self.recipe.label_smoothing,
            reduction="sum",
        )
        dlogits = ops.softmax_cross_entropy.backward(ops.asarray(share, high), loss_cache).dlogits
        model.backward(ops.asarray(dlogits, low), cache, self._views[slot])
        return loss

    def tensors(self) -> dict[str, Array]:
        """Return a copy of everything that a checkpoint must hold, by name.

        Frozen parameters are not included. `Diverged` is raised as by `settle`.
        """
        self.settle()
        return {
            name: np.concatenate([self.ops.to_numpy(x) for x in parts])
            for name, parts in self._buffers().items()
        }

    def restore(self, tensors: dict[str, Array]) -> None:
        """Restore the state that `tensors()` returned.

        Raises:
            TypeError, ValueError: it does not fit this model and its optimizer.
        """
        buffers = self._buffers()
        for name, parts in buffers.items():
            whole = sum(part.shape[0] for part in parts)
            checks.shape(f"the checkpoint's {name}", tensors.get(name), (whole,))
        for name, parts in buffers.items():
            start = 0
            for part in parts:
                stop = start + part.shape[0]
                part[...] = self.ops.asarray(tensors[name][start:stop])
                start = stop
        self.round()

    def _buffers(self) -> dict[str, list[Any]]:
        """Return, by name, all that changes as the model learns, as slices of the flat buffers."""
        models = {"params": self.model}
        if self.average is not self.model:
            models["average"] = self.average
        over = self.optimizer.over
        return {
            **{name: [model.flat[at.params] for at in over] for name, model in models.items()},
            **{name: [x] for name, x in self.optimizer.state.items()},
        }


def added(buffers: Sequence[Any]) -> Any:
    """Add buffers pairwise, in place, and return their sum, the first one; None if all are None.

    The tree is that of all buffers, absent ones included, so that N processes (a power of two that
    divides their number), each with adjacent ones, add in the same order as one process.

    Args:
        buffers: (n,) each; the last ones may be None.
    """
    if len(buffers) == 1:
        return buffers[0]
    middle = (len(buffers) + 1) // 2
    left, right = added(buffers[:middle]), added(buffers[middle:])
    if right is not None:
        left += right
    return left
