"""One step of training, on either side: forward, loss, backward, clipping, update, average.

A batch is worked on in parts, each with dropout masks of its own; their gradients are added in
order, so the result depends on the number of parts but not on what runs at the same time. On the
NumPy side every part has a thread. The update has none: its many short sweeps would spend more on
handing Python's lock to and fro than they gain (9 ms in two threads, 4 in one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from twofold.core.model.classifier import Classifier
from twofold.core.model.parameters import Layout
from twofold.core.model.seeds import dropout_seeds
from twofold.core.ops import Side
from twofold.core.training.batches import Array, Batch, batches_by_length, collate
from twofold.core.training.optimizer import Optimizer, stretches
from twofold.core.training.recipe import Recipe
from twofold.reference import checks
from twofold.reference.checks import dtype_name

SLICE = 1 << 15  # elements that are averaged at a time, so that they stay in cache
# Elements of a layer's widest array in a batch that is predicted; on the NumPy side they are to stay
# in cache (3 MB: quickest of 1.5 to 12 at two sizes of model).
ELEMENTS = {"reference": 3 << 18, "triton": 1 << 26}


class Diverged(ArithmeticError):
    """The loss or the gradient is no longer finite."""


class Trainer:
    """A model and everything that changes as it learns.

    Attributes:
        model: learns in place.
        average: the model with running averages of the parameters, or `model` itself without them.
        loss, grad_norm: of the last step.
    """

    def __init__(self, model: Classifier, recipe: Recipe) -> None:
        self.model, self.recipe, self.ops = model, recipe, model.ops
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
        self._grads = [self.ops.zeros((self.learned.numel,), dtype) for _ in range(recipe.parts)]
        self._views = [self.learned.views(g) for g in self._grads]
        self.loss = self.grad_norm = math.nan

    def step(self, inputs: Sequence[Array], targets: Array, step: int, lr: float) -> None:
        """Learn from one batch.

        Args:
            inputs: token ids (L,) or patches (L, P) of every example.
            targets: (B,) int64 labels or (B, C) float32 probabilities.
            step: counts from 1.
            lr: learning rate of this step.

        Raises:
            Diverged: the loss or the gradient's norm is not finite; nothing was changed.
        """
        parts = min(self.recipe.parts, len(inputs))

        def work(part: int) -> float:
            batch = collate(inputs[part::parts])
            return self._part(batch, targets[part::parts], part, step, 1 / len(inputs))

        self.loss = sum(parallel(self.ops, work, range(parts)))
        grads = self._grads[0]
        for other in self._grads[1:parts]:
            grads += other
        norm = self.ops.optimizers.global_norm(grads)
        self.grad_norm = float(norm)
        if not math.isfinite(self.loss) or not math.isfinite(self.grad_norm):
            raise Diverged(
                f"step {step}: the loss is {self.loss:.6g} and the gradient's norm "
                f"{self.grad_norm:.6g}; both must be finite"
            )

        self.optimizer.step(self.model.flat, grads, step=step, lr=lr, grad_norm=norm)
        if self.average is not self.model:
            self._follow(step)

    def _follow(self, step: int) -> None:
        """Move the average towards the parameters; faster early on, to forget where it began."""
        decay = min(self.recipe.average, step / (step + 9))
        for at in self.optimizer.over:
            first, stop, _ = at.params.indices(self.model.layout.numel)
            size = SLICE if self.ops.name == "reference" else stop - first
            for start in range(first, stop, size):
                end = min(start + size, stop)
                average = self.average.flat[start:end]
                average *= decay
                average += (1 - decay) * self.model.flat[start:end]

    def _part(self, batch: Batch, targets: Array, part: int, step: int, share: float) -> float:
        """Write the gradient of one part's share of the mean loss and return that share."""
        ops, recipe, config = self.ops, self.recipe, self.model.config
        seeds = dropout_seeds(recipe.seed, step, part, config.sites)
        logits, cache = self.model.forward(
            ops.asarray(batch.inputs), ops.asarray(batch.lengths), seeds
        )
        loss, loss_cache = ops.softmax_cross_entropy.forward(
            logits,
            ops.asarray(targets),
            label_smoothing=recipe.label_smoothing,
            reduction="sum",
        )
        dlogits = ops.softmax_cross_entropy.backward(
            ops.asarray(np.array(share), dtype_name(logits)), loss_cache
        ).dlogits
        self.model.backward(dlogits, cache, self._views[part])
        return float(loss) * share

    def tensors(self) -> dict[str, Array]:
        """Return a copy of everything that a checkpoint must hold, by name.

        Frozen parameters are not among it.
        """
        return {
            name: np.concatenate([self.ops.to_numpy(x) for x in parts])
            for name, parts in self._buffers().items()
        }

    def restore(self, tensors: dict[str, Array]) -> None:
        """Take up the state of `tensors()`."""
        for name, parts in self._buffers().items():
            start = 0
            for part in parts:
                stop = start + part.shape[0]
                part[...] = self.ops.asarray(tensors[name][start:stop])
                start = stop

    def _buffers(self) -> dict[str, list[Any]]:
        """Return what changes as the model learns, in stretches of the flat buffers, by name."""
        models = {"params": self.model}
        if self.average is not self.model:
            models["average"] = self.average
        over = self.optimizer.over
        return {
            **{name: [model.flat[at.params] for at in over] for name, model in models.items()},
            **{name: [x] for name, x in self.optimizer.state.items()},
        }


def predict(model: Classifier, inputs: Sequence[Array]) -> Array:
    """Return probabilities (n, C) float32; examples of similar length share a batch."""

    def probabilities(ids: Any, lengths: Any) -> Array:
        logits, _ = model.forward(ids, lengths)
        shifted = model.ops.to_numpy(logits).astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    return _by_length(model, inputs, model.config.num_classes, probabilities)


def embed(model: Classifier, inputs: Sequence[Array]) -> Array:
    """Return embeddings (n, d_model) float32: the mean of the last layer's vectors, of length 1.

    The dot product of two is the cosine of the angle between them (Reimers & Gurevych 2019,
    "Sentence-BERT", section 3).
    """

    def means(ids: Any, lengths: Any) -> Array:
        mean = model.ops.to_numpy(model.mean_state(ids, lengths)).astype(np.float64)
        return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))

    return _by_length(model, inputs, model.config.d_model, means)


def _by_length(
    model: Classifier,
    inputs: Sequence[Array],
    width: int,
    function: Callable[[Any, Any], Array],
) -> Array:
    """Return rows (n, width) float32 that a function makes of batches of similar length."""
    rows = np.empty((len(inputs), width), np.float32)

    def work(chosen: Array) -> None:
        batch = collate([inputs[i] for i in chosen])
        asarray = model.ops.asarray
        rows[chosen] = function(asarray(batch.inputs), asarray(batch.lengths))

    lengths = np.array([len(x) for x in inputs], np.int64)
    positions = ELEMENTS[model.ops.name] // model.config.d_ff
    parallel(model.ops, work, batches_by_length(lengths, positions))
    return rows


def accuracy(model: Classifier, inputs: Sequence[Array], labels: Array) -> float:
    """Return the share of examples whose most probable class is their label."""
    return float((predict(model, inputs).argmax(axis=1) == labels).mean())


_X = TypeVar("_X")
_Y = TypeVar("_Y")
_pool = ThreadPoolExecutor(2, "twofold")


def use_threads(n: int) -> None:
    """Let the NumPy side work on so many parts of a batch at a time; results do not change."""
    global _pool
    _pool = ThreadPoolExecutor(n, "twofold")


def parallel(ops: Side, work: Callable[[_X], _Y], items: Sequence[_X]) -> list[_Y]:
    """Apply `work` to every item: on the NumPy side in threads, elsewhere one after the other."""
    if ops.name != "reference" or len(items) == 1:
        return [work(item) for item in items]

    def quiet(item: _X) -> _Y:
        with np.errstate(all="ignore"):  # what is not finite is seen in the loss; see Diverged
            return work(item)

    return list(_pool.map(quiet, items))
